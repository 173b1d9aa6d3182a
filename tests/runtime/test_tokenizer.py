"""Vocabularies: published World vectors, byte-exact round trips, streaming, clear refusals."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge_runtime.errors import TokenizerError
from kernelforge_runtime.text import StreamDecoder, load_tokenizer
from kernelforge_runtime.text.world import read_vocabulary

VECTORS = {
    "The Eiffel tower is in the city of": "6699 304 25740 109 39990 4600 4596 22590 30449 4706",
    "User: hi\n\nAssistant:": "24281 59 4571 261 5585 41693 59",
    "User: simulate SpaceX mars landing using python\n\nAssistant: <think": (
        "24281 59 57236 44898 31377 52092 40085 46966 261 5585 41693 59 295 35762"
    ),
    "Hello, world! 12345 67": "33155 45 40213 34 3485 654 54 3540",
    "<think>\n</think>": "61 35762 63 11 754 35762 63",
    "def f(x):\n    return x*2\n": "7334 337 41 121 501 28352 42178 355 43 51 11",
    "我捡到了一只小猫，该怎样喂它": (
        "12605 12790 10792 10333 10250 11016 11975 14398 19137 16721 12401 13324 11253 11885"
    ),
    "🌍é": "3319 141 142 2503",
    "0123456789": "621 643 665 687 709",
    "\n": "11",
    "\n\n": "261",
    " ": "33",
    "  ": "267",
    "    ": "19250",
    "\r\n": "263",
    "\t\t": "257",
    "": "",
}


@pytest.fixture(scope="module")
def world():
    return load_tokenizer("auto", 65536)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the theme of the thesis is the theory"] * 5, trainer)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.mark.parametrize("text", VECTORS)
def test_world_gives_the_published_ids(world, text):
    ids = [int(i) for i in VECTORS[text].split()]
    assert world.encode(text) == ids
    assert world.encode(text.encode()) == ids
    assert world.decode(ids).decode() == text


def test_world_knows_its_ends(world):
    assert world.end_token == 0
    assert world.decode([0, 65530, 65535]) == b""
    assert world.decode([65529]) == b" " * 128
    assert [world.decode([i + 1]) for i in range(256)] == [bytes([i]) for i in range(256)]
    for bad in (-1, 65536):
        with pytest.raises(TokenizerError, match="outside its 65536 ids"):
            world.decode([bad])


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_world_finds_the_same_ids_for_text_and_for_its_bytes(world, text):
    ids = world.encode(text)
    assert ids == world._encode_bytes(text.encode())
    assert world.decode(ids) == text.encode()


@given(st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_bytes_survive_a_round_trip(world, raw):
    assert world.decode(world.encode(raw)) == raw
    assert load_tokenizer("auto", 256).decode(list(raw)) == raw


def test_bytes_are_their_own_tokens():
    tokenizer = load_tokenizer("bytes", 256)
    assert tokenizer.encode("é!") == [0xC3, 0xA9, 0x21]
    assert tokenizer.decode([34, 105, 110]) == b'"in'
    assert tokenizer.end_token is None
    with pytest.raises(TokenizerError, match="id 256 is outside"):
        tokenizer.decode([256])
    with pytest.raises(TokenizerError, match="needs 256 ids, the model has 12"):
        load_tokenizer("bytes", 12)


def test_half_a_surrogate_pair_is_refused_in_one_line(world):
    for tokenizer in (world, load_tokenizer("bytes", 256)):
        with pytest.raises(TokenizerError, match="at character 1, half of a surrogate"):
            tokenizer.encode("a\ud800")
        with pytest.raises(
            TokenizerError, match="byte 0xff at character 1 of the text is not UTF-8"
        ):
            tokenizer.encode("a\udcff")


@pytest.mark.parametrize("size", [50277, 50304, 12, 65529, 65537])
def test_auto_asks_for_a_vocabulary_where_none_is_known(size):
    with pytest.raises(TokenizerError, match=f"no built-in tokenizer has {size} ids"):
        load_tokenizer("auto", size)


def test_unknown_missing_and_malformed_vocabularies_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="'klingon' is not known"):
        load_tokenizer("klingon", 65536)
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path / "absent.txt", 65536)
    with pytest.raises(TokenizerError, match="has 65530 ids, the model 100"):
        load_tokenizer("world", 100)
    bad = tmp_path / "vocab.txt"
    for line in ("1 'a' 2", "1 a 1", "x 'a' 1", "1 open('x') 1", "0 'a' 1", "hello", "1 '\\x' 1"):
        bad.write_text(line)
        with pytest.raises(TokenizerError, match="line 1"):
            read_vocabulary(bad)
    bad.write_text("1 'a' 1\n1 'b' 1\n")
    with pytest.raises(TokenizerError, match="appears twice"):
        read_vocabulary(bad)
    bad.write_text("1 'a' 1\n")
    with pytest.raises(TokenizerError, match="255 single bytes are missing"):
        read_vocabulary(bad)


def test_a_vocabulary_of_ones_own_in_the_world_format_is_used(tmp_path):
    lines = [f"{i + 1} {bytes([i])!r} 1" for i in range(256)] + ["257 'hello' 5"]
    path = tmp_path / "own.txt"
    path.write_text("\r\n".join(lines))
    tokenizer = load_tokenizer(path, 300)
    assert tokenizer.encode("hello!") == [257, 34]
    assert tokenizer.decode([257]) == b"hello"


@given(st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_byte_level_tokenizer_json_is_byte_exact(hugging_face, text):
    tokenizer = load_tokenizer(hugging_face, 320)
    assert tokenizer.is_bytewise
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


def test_a_tokenizer_json_that_does_not_fit_is_refused(hugging_face, tmp_path):
    tokenizer = load_tokenizer(hugging_face, 50304)
    assert tokenizer.end_token == 0
    assert tokenizer.decode([0, 50303]) == b"<|endoftext|>"
    assert tokenizer.encode("<|endoftext|>the") == [0, *tokenizer.encode("the")]
    with pytest.raises(TokenizerError, match=r"ids up to \d+, the model 100 rows"):
        load_tokenizer(hugging_face, 100)
    with pytest.raises(TokenizerError, match="not UTF-8"):
        tokenizer.encode(b"\xff")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"is no tokenizer\.json"):
        load_tokenizer(tmp_path / "bad.json", 100)


def test_a_missing_package_says_what_to_install(hugging_face, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"pip install 'kernelforge\[hf\]'"):
        load_tokenizer(hugging_face, 320)


@given(st.text(max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_stream_adds_up_to_the_text_and_never_shows_half_a_character(world, text):
    for tokenizer in (world, load_tokenizer("bytes", 256)):
        stream = StreamDecoder(tokenizer)
        pieces = [stream.push(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) == text
        assert stream.flush() == ""


def test_a_stream_marks_bytes_that_cannot_become_text():
    stream = StreamDecoder(load_tokenizer("bytes", 256))
    assert [stream.push(b) for b in b"\xf0\x9f\x8c"] == ["", "", ""]
    assert stream.push(ord("a")) == "\ufffda"
    assert [stream.push(b) for b in b"\xe2\x82"] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.push(ord("b")) == "b"


def test_a_stream_over_a_vocabulary_that_joins_words_adds_up(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    vocab = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3, "<0xC3>": 4, "<0xA9>": 5}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    path = tmp_path / "words.json"
    made.save(str(path))
    tokenizer = load_tokenizer(path, 6)
    assert not tokenizer.is_bytewise
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(token) for token in (1, 2, 3, 4, 5, 2)]
    assert pieces == ["the", " cat", "s", "", "é", " cat"]
    assert stream.flush() == ""
    broken = [stream.push(4) for _ in range(4)]  # no character: not held back for ever
    assert broken == ["", "", "", "\ufffd" * 4]
