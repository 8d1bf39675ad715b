"""What `AsyncClient` does with layers that are stored: finds, lists and deletes them, and moves their names."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from convserve._async import io
from convserve._async.connection import Connection
from convserve._async.stored_layer import AsyncStoredLayer
from convserve._rpc import retries
from convserve.errors import ConvserveError, LayerNotFoundError
from convserve.layers.layer import Layer
from convserve.protocol import layer_messages, name_messages, stored_layers
from convserve.protocol.name_messages import Expect, NameVersion
from convserve.v1 import layer_service_pb2

OnName = Callable[[str, int, int], None]
"""Called with each name, its number and how many there are, before something is done with it."""


class LayerCalls(Connection):
    """The calls about stored layers and their names."""

    async def layer(
        self, name: str | None = None, *, digest: bytes | str | None = None, timeout: float | None = None
    ) -> AsyncStoredLayer:
        """Returns the stored layer that a name leads to, or that has a digest, to be called with inputs.

        Args:
            name: The name.
            digest: Instead of a name: 32 bytes or 64 hexadecimal digits.
            timeout: Seconds for this call.

        Raises:
            LayerNotFoundError: If there is none.
        """
        request = layer_service_pb2.GetLayerRequest(layer=layer_messages.stored_reference(name, digest))
        answer = await self._first(request, timeout)
        return AsyncStoredLayer(self, **stored_layers.known_parts(answer.layer, name))

    async def layers(self, name_prefix: str = "", *, timeout: float | None = None) -> list[AsyncStoredLayer]:
        """Returns the stored layers of all servers, or those with a name that begins so, in the order of digests.

        Each one's `name` is its first that begins so; `names` has all.
        """
        request = layer_messages.list_request(name_prefix)
        listed = await self._call(self._connected()._servers.all_layers, request, timeout)
        return stored_layers.LayerList(
            AsyncStoredLayer(self, **parts) for parts in stored_layers.listed_parts(listed, name_prefix)
        )

    async def missing(self, layers: Sequence[Layer], *, timeout: float | None = None) -> list[Layer]:
        """Returns those layers that no server holds, asked in one call, or a few where they are very many.

        Raises:
            InvalidRequestError: If there is anything but layers.
            InvalidWeightsError: For a layer without weights, which has no digest.
        """
        deadline, absent = self._deadline(timeout), set[bytes]()
        for page in layer_messages.missing_requests(layers):
            answers = await self._call(self._connected()._servers.every, page, deadline)
            absent |= set.intersection(*(set(answer.missing_digests) for answer in answers))
        return [layer for layer in layers if layer.digest in absent]

    async def delete(self, layer: AsyncStoredLayer | str, *, timeout: float | None = None) -> None:
        """Deletes a stored layer with its names, or a name, and its layer with the last one, from every server.

        A server that does not answer is passed over if another one does; it may hold the layer still.

        Raises:
            LayerNotFoundError: If there is none.
        """
        request = layer_service_pb2.DeleteLayerRequest(layer=layer_messages.stored_reference(layer))
        await self._remove(request, timeout)

    async def delete_all(self, prefix: str, *, timeout: float | None = None) -> list[str]:
        """Deletes every name that begins so, and each layer with the last of its names; returns the names.

        It is done name by name, as `delete` does it. What ends it in the middle has a note of what was deleted, and
        another attempt deletes the rest. Names that another caller deletes meanwhile are passed over.

        Args:
            prefix: The beginning of the names, such as "m1/".
            timeout: Seconds for each call.

        Raises:
            InvalidRequestError: If it is empty, for that would be all.
        """
        stored_layers.check_prefix(prefix)
        names = stored_layers.names_in(await self.layers(prefix, timeout=timeout), prefix)
        return await self._delete_names(names, timeout=timeout)

    async def _delete_names(
        self, names: list[str], on_name: OnName | None = None, *, timeout: float | None = None
    ) -> list[str]:
        deleted: list[str] = []
        for number, name in enumerate(names, 1):
            if on_name:
                on_name(name, number, len(names))
            try:
                await self.delete(name, timeout=timeout)
            except LayerNotFoundError:
                continue
            except ConvserveError as error:
                error.add_note(stored_layers.deleted_text(deleted, len(names)))
                raise
            deleted.append(name)
        return deleted

    async def save_all(
        self, prefix: str, folder: str | os.PathLike[str], *, timeout: float | None = None
    ) -> dict[str, Path]:
        """Writes each layer with a name that begins so into a folder, a file for each such name; returns the files.

        A file is safetensors and has the weights and the configuration: `importing.read` reads it, and `convserve
        layers import FOLDER` all of them. Each "/" in a name makes a folder. Of several layers the weights of one are
        in memory at a time. What ends it in the middle has a note of what was written.

        Args:
            prefix: The beginning of the names, such as "m1/".
            folder: Where the files go; one that is there under the same name is replaced, whole or not at all.
            timeout: Seconds for each call.

        Raises:
            InvalidRequestError: If the prefix is empty, for that would be all, or a file cannot be written.
            LayerNotFoundError: If another caller deletes a layer meanwhile.
        """
        stored_layers.check_prefix(prefix)
        path = stored_layers.checked_folder(folder)
        return await self._save(await self.layers(prefix, timeout=timeout), prefix, path, timeout=timeout)

    async def _save(
        self,
        layers: list[AsyncStoredLayer],
        prefix: str,
        folder: Path,
        on_name: OnName | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, Path]:
        from convserve.files.layers import save_named  # late: few callers write files

        count = len(stored_layers.names_in(layers, prefix))
        files: dict[str, Path] = {}
        while layers:
            layer = layers.pop(0)  # with its weights, of which no more are held than one layer's
            for name in stored_layers.names_in([layer], prefix):
                if on_name:
                    on_name(name, len(files) + 1, count)
                try:
                    whole = Layer(layer.config, *await layer.weights(timeout=timeout))
                    files[name] = await io.in_thread(save_named, folder, name, whole)
                except ConvserveError as error:
                    error.add_note(f"wrote {len(files)} of {count} files; another attempt writes all again")
                    raise
        return dict(sorted(files.items()))

    async def versions(self, name: str, *, timeout: float | None = None) -> list[NameVersion]:
        """Returns the layers that a name has led to, oldest first; the last is the one it leads to now.

        Raises:
            LayerNotFoundError: If there is no such name.
        """
        request = name_messages.versions_request(name)
        answer = await self._first(request, timeout)
        return name_messages.versions_of(answer)

    async def move(
        self,
        name: str,
        layer: AsyncStoredLayer | str | None = None,
        *,
        digest: bytes | str | None = None,
        version: int | None = None,
        expect: Expect = None,
        timeout: float | None = None,
    ) -> AsyncStoredLayer:
        """Moves a name to a stored layer, of which no weights cross the wire, and makes a version of it.

        The call is retried where an answer is lost: the server knows a move that it has made, and makes it once. A
        layer that the server has lost is sent to it, if this process or another server has its weights.

        Args:
            name: The name, which may be a new one.
            layer: Where it is to lead: a stored layer, or another name for the layer to which that leads now.
            digest: Instead of a layer: its digest, 32 bytes or 64 hexadecimal digits.
            version: Instead of a layer: the number of one of the name's versions, to go back to it. Of several servers,
                each of which counts by itself, it is one of the first that answers and has it, as in `versions`.
            expect: As in `put`.
            timeout: Seconds for this call.

        Returns:
            The layer to which the name leads now.

        Raises:
            LayerNotFoundError: If there is no such layer, name or version.
            NameConflictError: If something else than expected is at the name; nothing was moved. So it is too, with
                "absent" found, where the server that had the name is gone for good and another one answers.
        """
        request = name_messages.move_request(name, layer, digest, version, expect)
        deadline = self._deadline(timeout)
        try:
            answer = await self._first(request, deadline)
        except LayerNotFoundError:
            if not request.HasField("layer"):
                raise
            if isinstance(layer, AsyncStoredLayer):
                stored = layer
            else:  # another server may have it, or the name
                found = await self._first(layer_service_pb2.GetLayerRequest(layer=request.layer), deadline)
                stored = AsyncStoredLayer(self, **stored_layers.known_parts(found.layer, None))
                request.layer.digest = stored.digest
            await self._upload([stored], [stored.uploads], deadline)
            answer = await self._first(request, deadline)
        return AsyncStoredLayer(self, **stored_layers.known_parts(answer.layer, name))

    async def move_away(self, name: str, *, expect: Expect = None, timeout: float | None = None) -> None:
        """Removes a name from every server, and leaves the layer, which `delete` would delete with its last name.

        A server without a durable store may evict a layer without a name.

        Args:
            name: The name.
            expect: As in `put`.
            timeout: Seconds for this call.

        Raises:
            LayerNotFoundError: If there is no such name.
            NameConflictError: If something else than expected is at the name; it was not removed from that
                server; of several, others may have removed it.
            UnavailableError: If no server answered, or none that did had the name, which another one may have removed.
                Without `expect` the call is not retried where one may have removed it.
        """
        request = name_messages.away_request(name, expect)
        await self._remove(request, timeout, moves_name=expect is None)

    async def _remove(self, request: Any, timeout: float | None, *, moves_name: bool = False) -> None:
        """Sends a request to remove something; what an earlier attempt may have removed need not be there."""
        call = retries.Call(self._retry, self._deadline(timeout), self._budget, moves_name)
        done: set[Any] = set()
        try:
            await self._attempt(call, functools.partial(self._connected()._servers.remove, done=done), request)
        except LayerNotFoundError:
            if not (done or call.may_be_done):
                raise
