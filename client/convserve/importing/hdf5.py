"""HDF5 files from strangers: groups, arrays and texts, as Keras writes them, in a reader that cannot be led astray.

The usual reader, libhdf5, follows links and storage into other files, loads plugins, and ends the process on some
damaged files. This one knows the format's oldest form only, in which Keras' files are: what it does not know, links and
compressed arrays included, it refuses, every byte that it takes is looked for within the file first, and no place in
the file is visited twice where a ring could be made of it.

The names of the structures are those of the HDF5 File Format Specification 3.0.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from convserve.bfloat16 import float32_of_bits
from convserve.errors import shown
from convserve.importing.hdf5_types import Type, dataspace, datatype
from convserve.importing.untrusted import Budget, refusal
from convserve.tensor import Array, Shape

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = 2**64 - 1

# Messages of an object header.
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK = 0x1, 0x2, 0x3, 0x6
_EXTERNAL_FILES, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x7, 0x8, 0xC, 0x10, 0x11
_COMPACT, _CONTIGUOUS = 0, 1
_SOFT_LINK = 2


class Hdf5File:
    """A file in memory.

    Attributes:
        root: The address of the outermost group.
    """

    def __init__(self, data: bytes, budget: Budget) -> None:
        """Reads the superblock.

        Args:
            data: The file's bytes.
            budget: What may be read, in arrays and texts.

        Raises:
            ValueError: If it is no HDF5 file.
            InvalidRequestError: If it is one in a newer form.
        """
        self._data = data
        self._budget = budget
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self._groups: dict[int, dict[str, int]] = {}
        if self._take(0, 8) != _SIGNATURE:
            raise ValueError("it does not begin as HDF5 files do")
        version, offset_size, length_size = self._data[8], *self._take(13, 2)
        if version > 1 or (offset_size, length_size) != (8, 8):
            raise refusal("an HDF5 file in its oldest form, as Keras writes it", f"one of version {version}")
        addresses = 24 if version == 0 else 28
        if self._unpack("<Q", addresses)[0] != 0:
            raise refusal("an HDF5 file that begins at its first byte", "one that begins elsewhere")
        self.root: int = self._unpack("<Q", addresses + 40)[0]

    def find(self, path: str) -> int | None:
        """Returns the address of what lies under a path, or None if there is nothing.

        Raises:
            InvalidRequestError: If a link is on the way.
        """
        address = self.root
        for name in path.split("/"):
            members = self._members(address)
            if name not in members:
                return None
            address = members[name]
            if address == _NOWHERE:
                raise refusal("an HDF5 file without links", f"{shown(path)}, which is one")
        return address

    def array(self, path: str) -> Array | None:
        """Returns an array of floating-point numbers, or None if there is nothing under this path.

        bfloat16, of which older writers know only the bits, becomes float32, without loss.

        Raises:
            InvalidRequestError: If it is something else, or not stored in one piece in the file itself.
        """
        address = self.find(path)
        if address is None:
            return None
        found = dict(self._messages(address))
        if _EXTERNAL_FILES in found:
            raise refusal("arrays that are in the file itself", f"{shown(path)}, which is in others")
        if not found.keys() >= {_DATASPACE, _DATATYPE, _LAYOUT}:
            raise refusal("an array", f"{shown(path)}, which is none")
        shape, kind = dataspace(found[_DATASPACE]), datatype(found[_DATATYPE])
        if kind.numpy is None:
            raise refusal("floating-point numbers", f"{shown(path)} of another type")
        size = math.prod(shape) * kind.size
        self._budget.spend(size, f"the array {shown(path)}")
        elements = np.frombuffer(self._stored(found[_LAYOUT], size, path), kind.numpy)
        numbers = float32_of_bits(elements) if kind.is_bfloat16 else elements.copy()
        return numbers.reshape(shape)

    def text(self, address: int, name: str) -> str | None:
        """Returns an attribute that is a text, or None."""
        found = self._attributes(address).get(name)
        return None if found is None else "".join(self._texts(*found)[:1])

    def texts(self, address: int, name: str) -> list[str]:
        """Returns an attribute that is a list of texts; Keras splits a long one into `name0`, `name1` and so on."""
        attributes = self._attributes(address)
        parts = [attributes[name]] if name in attributes else []
        while name not in attributes and f"{name}{len(parts)}" in attributes:
            parts.append(attributes[f"{name}{len(parts)}"])
        return [text for part in parts for text in self._texts(*part)]

    def _take(self, begin: int, size: int) -> bytes:
        """Returns bytes of the file.

        Raises:
            ValueError: If the file has not so many.
        """
        if begin + size > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)}, before something that it should have")
        return self._data[begin : begin + size]

    def _unpack(self, form: str, begin: int) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(begin, struct.calcsize(form)))

    def _messages(self, address: int) -> list[tuple[int, bytes]]:
        """Returns the messages of an object header, each with its type."""
        version, number, size = self._unpack("<BxHxxxxI", address)
        if version != 1:
            raise refusal("an HDF5 file in its oldest form, as Keras writes it", "one with newer object headers")
        found: list[tuple[int, bytes]] = []
        blocks = [(address + 16, size)]
        for begin, length in blocks:
            place = begin
            while place + 8 <= begin + length and len(found) < number:
                kind, size, flags = self._unpack("<HHB", place)
                data = self._take(place + 8, size)
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack("<QQ", data[:16]))
                if flags & 2 and kind in (_DATASPACE, _DATATYPE, _LAYOUT, _ATTRIBUTE):
                    raise refusal("an HDF5 file without shared types", "one with a shared message")
                # Of genuine files this is next to nothing; of one whose headers lead to each other it is the end.
                self._budget.spend(64 + size, "a message")
                found.append((kind, data))
                place += 8 + size
        return found

    def _members(self, address: int) -> dict[str, int]:
        """Returns the addresses of a group's members by name, that of a link being nowhere; none for another object."""
        if address not in self._groups:
            found = dict(self._messages(address))
            if _LINK in found or _LINK_INFO in found:
                raise refusal("an HDF5 file with groups in their oldest form, as Keras writes it", "one with links")
            members: dict[str, int] = {}
            if _SYMBOL_TABLE in found:
                tree, heap = struct.unpack("<QQ", found[_SYMBOL_TABLE][:16])
                signature, size, names = self._unpack("<4s4xQ8xQ", heap)
                if signature != b"HEAP":
                    raise ValueError("a heap of names is not where it should be")
                texts = self._take(names, size)
                for node in self._leaves(tree):
                    members |= self._symbols(node, texts)
            self._groups[address] = members
        return self._groups[address]

    def _leaves(self, root: int) -> list[int]:
        """Returns the addresses of the symbol nodes below a tree's root."""
        visited: set[int] = set()
        nodes = [root]
        for level in range(self._unpack("<5xB", root)[0], -1, -1):
            below: list[int] = []
            for node in nodes:
                signature, kind, own_level, used = self._unpack("<4sBBH", node)
                if (signature, kind, own_level) != (b"TREE", 0, level) or node in visited:
                    raise ValueError("a tree of names is not what it should be")
                visited.add(node)
                below += self._unpack(f"<{'8xQ' * used}", node + 24)
            nodes = below
        return nodes

    def _symbols(self, node: int, names: bytes) -> dict[str, int]:
        signature, number = self._unpack("<4sxxH", node)
        if signature != b"SNOD":
            raise ValueError("a node of names is not where it should be")
        members = {}
        for index in range(number):
            name, address, kind = self._unpack("<QQI", node + 8 + 40 * index)
            text = names[name : names.find(b"\0", name)].decode()
            self._budget.spend(64 + len(text), "a name")
            members[text] = _NOWHERE if kind == _SOFT_LINK else address
        return members

    def _attributes(self, address: int) -> dict[str, tuple[Type, Shape, bytes]]:
        """Returns an object's attributes by name: type, shape and elements."""
        found = {}
        for kind, data in self._messages(address):
            if kind == _ATTRIBUTE:
                version, flags, *sizes = struct.unpack("<BBHHH", data[:8])
                if version not in (1, 2, 3) or (version > 1 and flags):
                    raise refusal("an HDF5 file with plain attributes", f"one with version {version}, flags {flags}")
                begin, parts = 9 if version == 3 else 8, []
                for size in sizes:
                    parts.append(data[begin : begin + size])
                    begin += size + (-size % 8 if version == 1 else 0)
                name, kind_of, space = parts
                found[name.rstrip(b"\0").decode()] = datatype(kind_of), dataspace(space), data[begin:]
        return found

    def _texts(self, kind: Type, shape: Shape, data: bytes) -> list[str]:
        """Returns the texts of an attribute; none if it has other things, such as the numbers of an empty list."""
        if not kind.is_text or len(data) < math.prod(shape) * kind.size:
            return []
        elements = [data[begin : begin + kind.size] for begin in range(0, math.prod(shape) * kind.size, kind.size)]
        if kind.is_variable:
            elements = [self._heap_object(*struct.unpack("<IQI", each)) for each in elements]
        return [each.rstrip(b"\0").decode() for each in elements]

    def _heap_object(self, length: int, heap: int, index: int) -> bytes:
        """Returns the bytes of a text that is kept in a global heap."""
        if length == 0:
            return b""
        if heap not in self._heaps:
            signature, size = self._unpack("<4s4xQ", heap)
            if signature != b"GCOL":
                raise ValueError("a heap of texts is not where it should be")
            objects: dict[int, tuple[int, int]] = {}
            begin, end = heap + 16, heap + size
            while begin + 16 <= end:
                number, used = self._unpack("<H6xQ", begin)
                if number == 0:  # the rest is free
                    break
                objects[number] = begin + 16, used
                begin += 16 + used + -used % 8
            self._heaps[heap] = objects
        if index not in self._heaps[heap]:
            raise ValueError("a text is not where it should be")
        begin, used = self._heaps[heap][index]
        self._budget.spend(min(length, used), "a text")
        return self._take(begin, min(length, used))

    def _stored(self, layout: bytes, size: int, path: str) -> bytes:
        """Returns the bytes of an array's elements."""
        version, kind = layout[0], layout[1]
        if version != 3 or kind not in (_COMPACT, _CONTIGUOUS):
            raise refusal(
                "arrays in one piece, as Keras writes them", f"{shown(path)}, which is in chunks or elsewhere"
            )
        if kind == _COMPACT:
            (length,) = struct.unpack("<H", layout[2:4])
            return layout[4 : 4 + min(length, size)]
        begin, length = struct.unpack("<QQ", layout[2:18])
        if length < size:
            raise ValueError("an array is shorter than its shape says")
        return self._take(begin, size)
