"""Stored layers and chains as models: which versions there are, and which can be called."""

import obstore
import pytest
from obstore.store import MemoryStore

from convserve import InvalidRequestError, LayerNotFoundError
from convserve_server.layer_store.names import Move
from convserve_server.open_inference.layer_models import MAX_LAYERS, LayerModel, LayerModels
from tests.support.layers.bucket_requests import BucketRequests
from tests.support.layers.places import opened
from tests.support.layers.tiny import layer


@pytest.fixture
def store():
    return opened(None)


@pytest.fixture
def models(store):
    """Names a, at its third version, and b, at its first."""
    for number in range(3):
        store.put(layer(number), Move("a"))
    store.put(layer(7), Move("b"))
    return LayerModels(store)


def numbers(models, name, version=""):
    """Returns a model's version, and the numbers of its layers."""
    found = models.find(name, version)
    return found.version, [int(each.kernel.flat[0]) for each in models.layers(found)]


def test_without_a_version_the_newest_is_meant(models):
    assert numbers(models, "a") == numbers(models, "a", "3") == ("3", [2])
    assert numbers(models, "a", "1") == numbers(models, "a", "01") == ("1", [0])
    assert models.versions("a") == ["1", "2", "3"]


def test_a_chains_version_grows_with_each_of_its_names(store, models):
    assert numbers(models, "a,b,a") == ("5", [2, 7, 2])
    assert models.versions("a,b,a") == ["5"]
    store.put(layer(8), Move("b"))
    assert numbers(models, "a,b,a", "6") == ("6", [2, 8, 2])
    with pytest.raises(LayerNotFoundError, match="'a,b,a' that is stored: 6"):
        models.find("a,b,a", "5")


@pytest.mark.parametrize("name", ["c", "a,c", "a,", ",", "", "a,,b", "a:1", "a, b"])
def test_what_is_no_name_is_not_found(models, name):
    with pytest.raises(LayerNotFoundError):
        models.find(name, "")
    with pytest.raises(LayerNotFoundError):
        models.versions(name)


@pytest.mark.parametrize("version", ["0", "4", "999999999999999999"])
def test_a_number_that_is_no_version_is_not_found(models, version):
    with pytest.raises(LayerNotFoundError, match="'a' that is stored: 1, 2, 3"):
        models.find("a", version)


@pytest.mark.parametrize("version", ["-1", "one", "1.0", " 1", "٣", "9" * 19, "latest"])
def test_what_is_no_number_is_refused(models, version):
    with pytest.raises(InvalidRequestError, match="field: Expected a decimal integer"):
        models.find("a", version, "field")


def test_a_version_goes_with_its_layer(store, models):
    found = models.find("a", "2")
    store.delete(layer(1).digest)
    assert models.versions("a") == ["1", "3"]
    for do in (lambda: models.layers(found), lambda: models.described("a", "2")):
        with pytest.raises(LayerNotFoundError, match="'a' that is stored: 1, 3"):
            do()


def test_all_that_can_be_called_is_listed(store, models):
    store.put(layer(9), Move("conv2d"))  # which the stateless model hides
    store.delete(layer(0).digest)
    assert list(models.listed()) == [
        LayerModel("conv2d", "1"), LayerModel("a", "2"), LayerModel("a", "3"), LayerModel("b", "1"),
    ]  # fmt: skip


def test_a_lost_layers_name_is_listed_as_such(tmp_path):
    opened(tmp_path).put(layer(1), Move("a"))
    (file,) = (tmp_path / "layers").iterdir()
    file.unlink()
    models = LayerModels(opened(tmp_path))
    (_, found) = models.listed()
    assert (found.name, found.version) == ("a", "1")
    assert "was lost" in found.reason
    with pytest.raises(LayerNotFoundError, match="there is none now"):
        models.find("a", "")


def test_layers_that_are_gone_are_not_asked_for_one_by_one(monkeypatch):
    bucket, requests = MemoryStore(), BucketRequests(monkeypatch)
    store = opened(bucket)
    for number in range(5):
        store.put(layer(number), Move("a"))
        store.put(layer(number + 5), Move("b"))
    for number in (0, 1, 2, 5, 6, 7):
        store.delete(layer(number).digest)
    models = LayerModels(opened(bucket, age_s=1000))
    for ask in (lambda: models.versions("a"), lambda: list(models.listed())):
        requests.asked.clear()
        ask()
        assert "head" not in requests.asked
    assert models.versions("a") == ["4", "5"]
    assert [(each.name, each.version) for each in models.listed()][1:] == [
        ("a", "4"), ("a", "5"), ("b", "4"), ("b", "5"),
    ]  # fmt: skip


def test_a_bucket_is_not_asked_for_layers_that_are_known(monkeypatch):
    bucket, requests = MemoryStore(), BucketRequests(monkeypatch)
    store = opened(bucket)
    for number in range(3):
        store.put(layer(number), Move("a"))
    models = LayerModels(opened(bucket, age_s=0))
    requests.asked.clear()
    assert models.versions("a") == ["1", "2", "3"]
    assert requests.asked == ["get"]  # the name


def test_lists_lack_what_another_server_has_deleted():
    bucket = MemoryStore()
    store = opened(bucket)
    for number in range(3):
        store.put(layer(number), Move("a"))
    models = LayerModels(opened(bucket, age_s=0))
    store.delete(layer(1).digest)
    assert [each.version for each in models.listed()][1:] == ["1", "3"]


def test_lists_are_served_from_what_was_seen_while_the_bucket_is_away(monkeypatch):
    bucket, requests = MemoryStore(), BucketRequests(monkeypatch)
    store = opened(bucket)
    for name in ("kept", "lost"):
        store.put(layer(len(name) * ord(name[0])), Move(name))
    obstore.delete(bucket, f"layers/{store.versions('lost').digest.hex()}.safetensors")
    models = LayerModels(opened(bucket, age_s=0))
    expected = list(models.listed())
    assert [(each.name, bool(each.reason)) for each in expected][1:] == [("kept", False), ("lost", True)]
    requests.is_away = True
    assert list(models.listed()) == expected
    assert models.versions("lost") == []


def test_a_layer_that_another_server_has_just_put_is_not_lost():
    bucket = MemoryStore()
    store = opened(bucket)
    store.put(layer(0), Move("a"))
    other = opened(bucket, age_s=1000)
    store.put(layer(1), Move("new"))  # whose name the other one reads, as it does not know it
    assert LayerModels(other).versions("new") == ["1"]
    third = opened(bucket, age_s=1000)
    third.versions("a")
    store.put(layer(2), Move("b"))
    third.versions("b")
    listed = [(each.name, each.version, each.reason) for each in LayerModels(third).listed()][1:]
    assert listed == [("a", "1", ""), ("b", "1", ""), ("new", "1", "")]


def test_a_long_chain_is_refused_before_it_is_looked_up(models):
    assert len(models.find(",".join(["a"] * MAX_LAYERS), "").digests) == MAX_LAYERS
    with pytest.raises(InvalidRequestError, match="model_name: Expected a chain of at most 1000 layers"):
        models.find("a," * 10**6, "")
