"""The predictor and what goes over the wire, without any server."""
import asyncio
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from course_lib import deploy, serving
from course_lib.serving import BadRequest, Prediction, Predictor, Reader, check_images, json_body, messages, raw_body
from helpers import IMAGE_SIZE, run_python, tiny
from onnx import TensorProto
from serving_helpers import SHAPE, flat_model

FLAT = Predictor(flat_model())
READER = Reader(SHAPE, largest_batch=3)
finite = st.floats(-50, 50, width=32)
batches = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), *map(st.just, SHAPE)), elements=finite)


def image(*pixels, dtype=np.float32):
    return np.array(pixels, dtype=dtype).reshape(1, *SHAPE)


def as_json(value) -> bytes:
    return json.dumps({"images": value}).encode()


# --- the predictor ---

def test_the_probabilities_are_softmax_by_hand():
    """Scores 0, ln 3, 0, ln 5: powers 1, 3, 1, 5, which sum to 10."""
    answer = FLAT.predict(image(0, math.log(3), 0, math.log(5)))
    assert answer.classes.tolist() == [3] and answer.classes.dtype == np.int64
    assert answer.probabilities == pytest.approx(np.array([[0.1, 0.3, 0.1, 0.5]]), abs=1e-6)
    assert answer.ran_with == 1 and answer.seconds > 0


@pytest.mark.parametrize("name", ["mlp", "lenet5", "student"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_predictor_equals_pytorch(name, n, tmp_path):
    model, images = tiny(name), torch.rand(7, 1, IMAGE_SIZE, IMAGE_SIZE)
    path = tmp_path / "model.onnx"
    deploy.export_onnx(model, path, images)
    with torch.no_grad():
        expected = model(images[:n]).softmax(dim=1)
    for source in (path, str(path), path.read_bytes()):
        predictor = Predictor(source)
        answer = predictor.predict(images[:n].numpy())
        assert predictor.shape == (1, IMAGE_SIZE, IMAGE_SIZE)
        assert answer.classes.tolist() == expected.argmax(1).tolist()
        assert answer.probabilities == pytest.approx(expected.numpy(), abs=1e-5)


@given(batches, batches)
def test_a_batch_answers_as_each_part_does_alone(first, second):
    together = FLAT.predict(np.concatenate([first, second])).split([len(first), len(second)])
    for part, images in zip(together, (first, second)):
        alone = FLAT.predict(images)
        assert np.array_equal(part.classes, alone.classes) and np.array_equal(part.probabilities, alone.probabilities)
        assert part.ran_with == len(first) + len(second) and alone.ran_with == len(images)


@given(batches)
def test_probabilities_sum_to_one_and_the_class_has_the_largest(images):
    answer = FLAT.predict(images)
    assert answer.probabilities.sum(1) == pytest.approx(np.ones(len(images)), abs=1e-5)
    assert np.array_equal(answer.classes, images.reshape(len(images), -1).argmax(1))


def test_large_scores_do_not_overflow_by_themselves():
    assert FLAT.predict(image(1000, 999, 0, 0)).probabilities[0, 0] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)


def test_splitting_by_hand_and_the_empty_part():
    answer = Prediction(np.array([4, 5, 6]), np.eye(3), 0.5, 3)
    parts = answer.split([1, 0, 2])
    assert [part.classes.tolist() for part in parts] == [[4], [], [5, 6]]
    assert parts[2].probabilities.tolist() == [[0, 1, 0], [0, 0, 1]] and parts[0].seconds == 0.5


@pytest.mark.parametrize("counts", [[1, 1], [4], [], [-1, 4]])
def test_counts_that_do_not_add_up_are_refused(counts):
    with pytest.raises(ValueError, match="do not add up to the 3 images"):
        Prediction(np.array([4, 5, 6]), np.eye(3), 0.5, 3).split(counts)


@pytest.mark.parametrize("images, message", [
    (np.zeros((1, *SHAPE), np.uint8), "floating-point numbers on the scale that the model was trained on; got uint8"),
    (np.zeros((1, *SHAPE), bool), "got bool"), ([[["a"]]], "got <U1"), (np.zeros((1, *SHAPE), complex), "got complex128"),
    (np.zeros((0, *SHAPE)), "no images"), (np.zeros((1, 1, 2, 3)), r"\(n, 1, 2, 2\); got \(1, 1, 2, 3\)"),
    (np.zeros(SHAPE), r"got \(1, 2, 2\)"), (np.float32(0), r"got \(\)"), (np.zeros((1, 1, 1, 2, 2)), r"got \(1, 1, 1, 2, 2\)"),
    (np.concatenate([image(0, 0, 0, 0), image(0, math.nan, 0, 0)]), "image 1 holds a value that is not a finite number"),
    (image(math.inf, 0, 0, 0), "image 0 holds"), (image(1e300, 0, 0, 0, dtype=float), "image 0 holds")])
def test_what_cannot_be_classified_is_refused_with_the_reason(images, message):
    with pytest.raises(ValueError, match=message):
        FLAT.predict(images)


def test_the_images_stay_as_they_were_and_float64_becomes_float32():
    images = image(1, 2, 3, 4, dtype=np.float64)
    before = images.copy()
    assert check_images(images, SHAPE).dtype == np.float32 and np.array_equal(images, before)
    turned = np.asfortranarray(np.zeros((2, *SHAPE), np.float32))
    assert check_images(turned, SHAPE).flags.c_contiguous


@pytest.mark.parametrize("content, message", [
    (b"no model", "ONNX Runtime cannot open this model"), (flat_model(batch=4), r"must take one input .*got pixels .*\[4, 1, 2, 2\]"),
    (flat_model((2,)), "must take one input"), (flat_model((1, "h", 2), scores=["n", "s"]), "must take one input"),
    (flat_model(of=TensorProto.DOUBLE), "must take one input"), (flat_model(inputs=2), "pixels2"),
    (flat_model(scores=["n", *SHAPE]), "one row of scores for each image")])
def test_a_file_that_is_no_classifier_of_images_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        Predictor(content)


def test_a_missing_file_and_no_threads_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Predictor(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="at least one thread; got threads=0"):
        Predictor(flat_model(), threads=0)


def test_without_onnx_runtime_the_predictor_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Predictor(flat_model())


def test_a_server_opens_neither_pytorch_nor_the_libraries_of_others():
    assert run_python("import sys; from course_lib.serving import BatchingAPI, Reader, Predictor; "
                      "print([m for m in ('torch', 'pandas', 'ray', 'aiohttp') if m in sys.modules])").strip() == "[]"
    assert run_python("import sys; from course_lib.serving import Predictor; "
                      "print([m for m in ('litserve', 'fastapi', 'onnxruntime') if m in sys.modules])").strip() == "[]"


def test_the_package_finds_its_names_and_modules_and_no_others():
    assert serving.messages is messages and serving.Predictor is Predictor
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        serving.predict


# --- reading a request ---

@given(batches)
def test_what_is_written_is_what_is_read(images):
    for body, content_type in (json_body(images), raw_body(images)):
        read = READER.read(body, content_type)
        assert np.array_equal(read, images) and read.dtype == np.float32
        assert len(body) <= READER.largest_body


def test_a_body_by_hand():
    assert json_body(image(0, 0.5, 1, 2)) == (b'{"images": [[[[0.0, 0.5], [1.0, 2.0]]]]}', "application/json")
    assert raw_body(image(0, 0.5, 1, 2)) == (bytes.fromhex("00000000 0000003f 0000803f 00000040"), "application/octet-stream")
    assert READER.read(b'{"images": [[[[0, 1], [0, 1]]]]}', "Application/JSON; charset=utf-8").tolist() == [[[[0, 1], [0, 1]]]]
    assert READER.largest_body == 1000 + 26 * 4 * 3


ZERO = [[[0.0, 0.0], [0.0, 0.0]]]
BAD = [
    (b"{", "application/json", 400, "not JSON"), (b"", "application/json", 400, "not JSON"),
    (b"\xff\xfe\xfa", "application/json", 400, "not JSON"), (b'{"images": [' + b"1" * 5000, "application/json", 400, "not JSON"),
    (b"[" * 100_000, "application/json", 400, "not JSON"),
    (b"[1]", "application/json", 422, 'field "images"; got a list'), (b'{"image": 1}', "application/json", 422, r"fields \['image'\]"),
    (b"null", "application/json", 422, "got a NoneType"),
    (as_json("text"), "application/json", 422, "nested lists of numbers; got a str"), (as_json(None), "application/json", 422, "a NoneType"),
    (as_json([[[["1", "2"], ["3", "4"]]]]), "application/json", 422, "numbers only"),
    (as_json([[[[True, False], [True, True]]]]), "application/json", 422, "numbers only"),
    (as_json([[[[None, 0], [0, 0]]]]), "application/json", 422, "numbers only"),
    (as_json([[[[10**30, 0], [0, 0]]]]), "application/json", 422, "numbers only"),
    (as_json([ZERO, [[[0.0]]]]), "application/json", 422, "all images have the same shape"),
    (as_json([]), "application/json", 422, "no images"), (as_json([ZERO] * 4), "application/json", 422, "may hold 3 images; got 4"),
    (as_json(ZERO), "application/json", 422, r"\(n, 1, 2, 2\); got \(1, 2, 2\)"),
    (as_json([[[[0.0] * 3] * 2]]), "application/json", 422, r"got \(1, 1, 2, 3\)"),
    (as_json([ZERO, [[[0.0, math.nan], [0.0, 0.0]]]]), "application/json", 422, "image 1 holds a value that is not a finite"),
    (as_json([[[[math.inf, 0], [0, 0]]]]), "application/json", 422, "image 0 holds"),
    (b'{"images": [[[[1e999, 0], [0, 0]]]]}', "application/json", 422, "image 0 holds"),
    (as_json([[[[1e300, 0], [0, 0]]]]), "application/json", 422, "image 0 holds"),
    (b" " * 5000, "application/json", 413, "larger than 1312 bytes"), (b" " * 5000, "", 413, "larger than 1312 bytes"),
    (b"x", "", 415, "a body without a content type"), (b"x", "image/png", 415, "send application/json .*not image/png"),
    (b"x", "text/" + "y" * 500, 415, "not text/y{75}$"),
    (b"", "application/octet-stream", 422, "no images"), (b"123", "application/octet-stream", 422, "16 bytes for one .*; got 3 bytes"),
    (image(0, 0, math.nan, 0).tobytes(), "application/octet-stream", 422, "image 0 holds"),
    (np.zeros((4, *SHAPE), np.float32).tobytes(), "application/octet-stream", 422, "may hold 3 images; got 4")]


@pytest.mark.parametrize("body, content_type, status, reason", BAD)
def test_a_bad_request_gets_its_status_and_the_reason(body, content_type, status, reason, monkeypatch):
    if status != 413:
        monkeypatch.setattr(Reader, "largest_body", 10**6)
    with pytest.raises(BadRequest, match=reason) as refused:
        READER.read(body, content_type)
    assert refused.value.status == status and refused.value.reason == str(refused.value) and len(refused.value.reason) < 250


@given(st.binary(max_size=60), st.sampled_from(["application/json", "application/octet-stream", "x/y"]))
def test_whatever_comes_is_images_or_a_bad_request(body, content_type):
    try:
        images = READER.read(body, content_type)
    except BadRequest as error:
        assert 400 <= error.status < 500
    else:
        assert images.shape[1:] == SHAPE and 1 <= len(images) <= 3 and np.isfinite(images).all()


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2))


@given(json_values)
def test_whatever_json_comes_is_images_or_a_bad_request(value):
    try:
        images = READER.read(as_json(value), "application/json")
    except BadRequest as error:
        assert 400 <= error.status < 500
    else:
        assert images.shape[1:] == SHAPE and images.dtype == np.float32


def test_a_reader_that_allows_no_images_is_refused():
    with pytest.raises(ValueError, match="at least one image; got largest_batch=0"):
        Reader(SHAPE, largest_batch=0)


# --- receiving it piece by piece ---

class Request:
    """A stand-in for Starlette's request: pieces that come one by one, and a count of those taken."""

    def __init__(self, pieces, headers=None, pause=0.0):
        self.pieces, self.pause, self.taken = pieces, pause, 0
        self.headers = {"content-type": "application/json", **(headers or {})}

    async def stream(self):
        for piece in self.pieces:
            await asyncio.sleep(self.pause)
            self.taken += 1
            if isinstance(piece, Exception):
                raise piece
            yield piece


def receive(request):
    return asyncio.run(messages.receive(request, READER))


def test_the_pieces_of_a_body_are_put_together():
    body, _ = json_body(image(0, 1, 2, 3))
    assert receive(Request([body[:7], b"", body[7:]])).tolist() == [[[[0, 1], [2, 3]]]]


@pytest.mark.parametrize("length", ["1313", "99999999999999", "-1", "many"])
def test_a_body_that_is_declared_too_large_is_not_read(length):
    request = Request([b"x"] * 10, {"content-length": length})
    with pytest.raises(BadRequest) as refused:
        receive(request)
    assert refused.value.status == 413 and request.taken == 0


def test_a_body_that_hides_its_size_is_read_no_further_than_the_limit():
    request = Request([b" " * 500] * 1000)
    with pytest.raises(BadRequest) as refused:
        receive(request)
    assert refused.value.status == 413 and request.taken == 3


def test_a_body_that_does_not_come_is_not_awaited_for_ever(monkeypatch):
    monkeypatch.setattr(messages, "SLOWEST_BODY", 0.05)
    with pytest.raises(BadRequest, match="within 0.05 seconds") as refused:
        receive(Request([b" "] * 1000, pause=0.01))
    assert refused.value.status == 408


def test_a_client_that_goes_away_has_made_a_bad_request():
    from starlette.requests import ClientDisconnect
    with pytest.raises(BadRequest, match="went away") as refused:
        receive(Request([b"{", ClientDisconnect()]))
    assert refused.value.status == 408


# --- answering ---

def test_an_answer_by_hand():
    status, body = messages.reply(Prediction(np.array([1]), np.array([[0.25, 0.75]], np.float32), 0.5, 7))
    assert status == 200
    assert json.loads(body) == {"classes": [1], "probabilities": [[0.25, 0.75]], "ran_with": 7, "model_seconds": 0.5}


def test_an_overflow_is_told_to_the_one_whose_image_it_was():
    images = np.concatenate([image(0, 1, 2, 3), image(3e38, -3e38, 0, 0)])
    good, bad = FLAT.predict(images).split([1, 1])
    bad = Prediction(bad.classes, np.full((1, 4), math.nan), bad.seconds, bad.ran_with)
    assert messages.reply(good)[0] == 200
    status, body = messages.reply(bad)
    assert status == 422 and "not finite numbers" in json.loads(body)["detail"]


def test_a_refusal_holds_the_reason():
    assert messages.refusal(BadRequest(413, "too large")) == (413, b'{"detail": "too large"}')
