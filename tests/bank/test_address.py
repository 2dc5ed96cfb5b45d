"""Addresses of banks in Milvus."""

from pathlib import Path

import pytest

from modeling_lle.bank.address import Address
from modeling_lle.bank.manifest import BankError
from modeling_lle.common.paths import is_address


def test_a_server_has_a_host_a_port_and_a_collection() -> None:
    address = Address.parse("milvus://box:7000/mine?timeout=5&database=ours")
    assert address == Address("http://box:7000", "mine", "ours", 5.0)
    assert str(address) == "milvus://box:7000/mine"
    assert Address.parse("milvus://box/mine").uri == "http://box:19530"
    assert Address.parse("milvus://[::1]:7000/mine").uri == "http://[::1]:7000"
    over_tls = Address.parse("milvuss://box/mine?ca=own.pem")
    assert (over_tls.uri, over_tls.certificates, str(over_tls)) == (
        "https://box:19530",
        "own.pem",
        "milvuss://box:19530/mine",
    )


def test_a_file_has_a_collection_of_a_default_name() -> None:
    for text in ("milvus+file:/banks/all.db", "milvus+file:///banks/all.db"):
        address = Address.parse(text)
        assert (address.uri, address.collection, address.is_file) == ("/banks/all.db", "bank", True)
    assert Address.parse("milvus+file:all.db?collection=mine").uri == "all.db"
    assert Address.parse(str(Address.parse("milvus+file:all.db?collection=mine"))).collection == "mine"


def test_an_address_that_went_through_a_path_is_the_same() -> None:
    for text in ("milvus://box:7000/mine?timeout=5", "milvuss://box/mine", "milvus+file:///banks/all.db?collection=a"):
        assert Address.parse(Path(text)) == Address.parse(str(Path(text))) == Address.parse(text)
        assert is_address(text)
        assert is_address(Path(text))
    for text in ("bank", "runs/milvus", "owner/name", "/milvus:/x"):
        assert not is_address(text)


@pytest.mark.parametrize(
    "text", ["milvus://ann:secret@box/mine", "milvuss://secret@box/mine", "milvus://box/mine?token=secret"]
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    for place in (text, Path(text)):
        with pytest.raises(BankError, match="environment variable LLE_MILVUS_TOKEN") as caught:
            Address.parse(place)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://box/mine", "is no address of a bank"),
        ("milvus://box", "'' in .* is no name of a collection"),
        ("milvus://box/two/parts", "is no name of a collection"),
        ("milvus://box/1st", "does not begin with a digit"),
        ("milvus:///mine", "names no host"),
        ("milvus://box:many/mine", "names no host and port"),
        ("milvus://box/mine?tmeout=3", "unknown option 'tmeout'; it may have: database, timeout"),
        ("milvus://box/mine?ca=own.pem", "unknown option 'ca'"),
        ("milvus://box/mine?timeout=soon", "a number of seconds"),
        ("milvus://box/mine?timeout=-1", "a number of seconds"),
        ("milvus+file:bank", "no file that ends in .db"),
    ],
)
def test_a_wrong_address_is_refused_with_the_right_form(text: str, message: str) -> None:
    with pytest.raises(BankError, match=message):
        Address.parse(text)
