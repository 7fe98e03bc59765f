"""The text has the entropy that it claims, the model is a transformer like PyTorch's, and its bits add up."""
import calendar
import json
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from course_lib import cost, energy, files, intervals, language, models, training
from course_lib.quantization.affine import grid_for, quantize
from course_lib.quantization.stored import quantize_weights
from helpers import run_python, same, state

TEXTS = ["two plus ten is twelve.", "after may comes june.", "the big cat sees the dog.", "friday plus three is monday."]


def small(seed: int = 0, **sizes) -> nn.Module:
    """A decoder with random weights, none of which is at a value that would hide a mistake."""
    torch.manual_seed(seed)
    model = language.decoder(**({"width": 16, "heads": 2, "depth": 2} | sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def fixed(logits: torch.Tensor) -> nn.Module:
    """A decoder that gives these logits whatever it reads."""
    model = small()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(logits)
    return model


# --- the text ---

def test_the_entropy_by_hand_and_by_scipy():
    """Which pattern: two quarters, an eighth, three eighths. Then one of 169, 91, 24 and 3,072 sentences."""
    pattern = 2 * 0.25 * 2 + 0.125 * 3 + 0.375 * math.log2(8 / 3)
    inside = 0.25 * math.log2(169) + 0.25 * math.log2(91) + 0.125 * math.log2(24) + 0.375 * math.log2(8 * 8 * 6 * 8)
    assert language.entropy() == pytest.approx(pattern + inside, rel=1e-12)
    assert language.entropy() == pytest.approx(scipy.stats.entropy(list(language.sentences().values()), base=2), rel=1e-12)


def test_no_sentence_is_made_in_two_ways():
    """Else its probability would be that of one way only."""
    assert len(language.sentences()) == 13 * 13 + 7 * 13 + 2 * 12 + 8 * 8 * 6 * 8
    assert math.fsum(language.sentences().values()) == pytest.approx(1, abs=1e-12)


def test_what_the_sentences_say_is_true():
    days, months = ([name.lower() for name in names] for names in (calendar.day_name, list(calendar.month_name)[1:]))
    numbers = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four""".split()
    for text in language.sentences():
        words = text.rstrip(".").replace("twenty ", "twenty-").split()
        if "comes" in words:
            step = {"before": -1, "after": 1}[words[0]]
            assert months[(months.index(words[1]) + step) % 12] == words[3]
        elif words[0] in days:
            assert days[(days.index(words[0]) + numbers.index(words[2])) % 7] == words[4]
        elif "plus" in words:
            assert numbers.index(words[0]) + numbers.index(words[2]) == numbers.index(words[4])
        else:
            assert words[0] == words[4] == "the" and len(words) == 6


def test_a_sample_has_the_entropy_and_the_length_of_the_language():
    texts = language.sample_sentences(20_000, seed=1)
    bits = language.information(texts)
    for seen, expected in ((bits, language.entropy()), (torch.tensor([len(t) + 1.0 for t in texts]), language.mean_length())):
        assert abs(float(seen.mean()) - expected) < 4 * float(seen.std()) / math.sqrt(len(texts))
    assert bits[texts.index("after may comes june.")] == pytest.approx(3 + math.log2(24))


def test_a_seed_gives_the_same_text_and_another_seed_another():
    assert language.sample_sentences(20, seed=3) == language.sample_sentences(20, seed=3) != language.sample_sentences(20, seed=4)


def test_a_false_sentence_carries_no_known_bits():
    with pytest.raises(ValueError, match="not in the language: 'two plus two is five.'"):
        language.information(["two plus two is four.", "two plus two is five."])


def test_tokens_by_hand():
    """"a." is the tokens 2 and 28: it is read behind the start, and each place must say what comes next."""
    split = language.encode(["a.", " cab"])
    assert split.images.tolist() == [[0, 2, 28, 0, 0], [0, 1, 4, 2, 3]]
    assert split.labels.tolist() == [[2, 28, 0, -1, -1], [1, 4, 2, 3, 0]]
    assert max(map(len, language.sentences())) < len(language.decoder().place)


@pytest.mark.parametrize("texts, message", [([], "need at least one sentence"), (["a1"], "no token for \\['1'\\]"),
                                            (["a\nb"], "no token for")])
def test_text_without_tokens_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        language.encode(texts)


# --- the model ---

def test_attention_equals_pytorchs():
    layer, x = small().blocks[0].attention, torch.randn(3, 7, 16)
    query, key, value = layer.query_key_value(x).view(3, 7, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).reshape(3, 7, 16)
    torch.testing.assert_close(layer(x), layer.out(expected))


def test_a_block_equals_pytorchs_transformer_layer():
    block, x = small().blocks[0], torch.randn(2, 9, 16)
    theirs = nn.TransformerEncoderLayer(16, 2, 64, dropout=0, activation="gelu", norm_first=True, batch_first=True)
    names = {"self_attn.in_proj_": "attention.query_key_value.", "self_attn.out_proj.": "attention.out.", "norm1.": "attention_norm.",
             "norm2.": "feed_forward_norm.", "linear1.": "feed_forward.0.", "linear2.": "feed_forward.2."}
    for name, parameter in theirs.named_parameters():
        old, new = next(pair for pair in names.items() if name.startswith(pair[0]))
        parameter.data = block.state_dict()[name.replace(old, new)]
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    torch.testing.assert_close(block(x), theirs(x, src_mask=mask, is_causal=True))


@given(place=st.integers(0, 9), token=st.integers(0, 28), seed=st.integers(0, 5))
@settings(max_examples=30)
def test_no_place_knows_what_comes_after_it(place, token, seed):
    model, tokens = small(seed), torch.randint(0, 29, (2, 10), generator=torch.Generator().manual_seed(seed))
    changed = tokens.clone()
    changed[:, place] = token
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=0)
    assert torch.equal(changed, tokens) or not torch.allclose(before[:, place:], after[:, place:])


def test_the_order_of_what_was_read_matters():
    model = small(depth=1)          # a second block could tell the order from what the first one mixed
    with torch.no_grad():
        assert not torch.allclose(model(torch.tensor([[0, 5, 9, 3]]))[:, -1], model(torch.tensor([[0, 9, 5, 3]]))[:, -1])


def test_the_parameters_by_hand():
    """A block of width w has 12 w² weights and 13 w biases and norms; then the tokens, the places, the output."""
    w = 64
    assert cost.parameters(language.decoder()) == 2 * (12 * w * w + 13 * w) + (29 + 40) * w + 2 * w + 29 * w + 29


@pytest.mark.parametrize("call, message", [
    (lambda: language.decoder(width=10, heads=4), "heads must divide the width 10; got 4"),
    (lambda: language.decoder(depth=0), "depth must hold whole numbers >= 1"),
    (lambda: small(context=5)(torch.zeros(1, 6, dtype=torch.int64)), r"need tokens of shape \(n, up to 5\); got \(1, 6\)"),
    (lambda: small()(torch.zeros(6, dtype=torch.int64)), r"got \(6,\)")])
def test_sizes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_training_fits_the_model_and_leaves_its_argument():
    model, texts = small(), TEXTS * 8
    before = state(model)
    trained, history = training.fit(model, language.encode(texts), epochs=30, lr=1e-2, batch_size=8, augmented=False,
                                    loss=language.next_character_loss)
    assert same(state(model), before) and history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert language.bits_per_sentence(trained, TEXTS).mean() < 10


# --- saving ---

def test_a_model_is_loaded_by_a_program_that_knows_only_files(tmp_path):
    model, path = small(), tmp_path / "model.safetensors"
    files.save(model, path)
    tokens = language.encode(TEXTS).images
    assert same(state(files.load(path)), state(model))
    assert model.architecture == {"builder": "language.decoder", "tokens": 29, "context": 40, "width": 16, "depth": 2, "heads": 2}
    printed = run_python(f"import torch; from course_lib import files; model = files.load({str(path)!r}); "
                         f"print(model(torch.tensor({tokens.tolist()})).double().sum().item())")
    with torch.no_grad():
        assert float(printed) == pytest.approx(float(model(tokens).double().sum()), rel=1e-6)


@pytest.mark.parametrize("bits, group, symmetric", [(4, 16, True), (3, 8, False), (2, None, True)])
def test_a_quantized_model_is_loaded_with_the_same_predictions(tmp_path, bits, group, symmetric):
    model = quantize_weights(small(), bits, group=group, symmetric=symmetric)
    files.save(model, tmp_path / "model")
    again, tokens = files.load(tmp_path / "model"), language.encode(TEXTS).images
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("name", ["language.fit", "training.fit", "nothing.decoder", "language.", ".decoder", "decoder", None])
def test_an_unknown_builder_is_refused(name):
    """Only what registered itself is called: a file must not choose any function."""
    with pytest.raises(ValueError, match="unknown builder"):
        models.build({"builder": name})


def test_the_builders_of_images_stay_among_themselves():
    assert "decoder" in language.BUILDERS and "decoder" not in models.BUILDERS
    assert repr(models.build(json.loads(json.dumps(small().architecture)))) == repr(small())


# --- bits ---

def test_a_model_that_knows_nothing_needs_log2_of_29_bits_a_character():
    bits = language.bits_per_sentence(fixed(torch.zeros(29)), TEXTS)
    assert bits.tolist() == pytest.approx([(len(text) + 1) * math.log2(29) for text in TEXTS])
    assert language.bits_per_character(bits, TEXTS).value == pytest.approx(math.log2(29))


def test_the_bits_are_those_of_the_loss_and_do_not_depend_on_the_company():
    model = small()
    bits = language.bits_per_sentence(model, TEXTS, batch_size=3)
    alone = [float(language.bits_per_sentence(model, [text])) for text in TEXTS]
    assert bits.tolist() == pytest.approx(alone, rel=1e-5)
    split = language.encode(TEXTS)
    with torch.no_grad():
        nats = float(language.next_character_loss(model(split.images), split.labels))
    assert float(bits.sum()) / sum(len(t) + 1 for t in TEXTS) == pytest.approx(nats / math.log(2), rel=1e-5)


def test_a_model_that_diverged_is_named():
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        language.bits_per_sentence(fixed(torch.full((29,), math.nan)), TEXTS)


def test_bits_per_character_by_hand():
    """2 + 7 bits over 2 + 4 characters: 1.5 each. The sentences are 1 bit off, by the mean length ±1/3; t is 12.706."""
    e = language.bits_per_character(torch.tensor([2.0, 7.0], dtype=torch.float64), ["a", "abc"])
    half = 12.7062 * (math.sqrt(2) / 3) / math.sqrt(2)
    assert (e.value, e.low, e.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half), rel=1e-5)
    with pytest.raises(ValueError, match="one number of bits a sentence"):
        language.bits_per_character(torch.tensor([3.0]), ["a", "abc"])


def test_the_interval_is_that_of_the_bootstrap_over_sentences():
    texts = language.sample_sentences(600, seed=5)
    lengths = np.array([len(text) + 1 for text in texts])
    bits = 0.4 * lengths + np.random.default_rng(0).exponential(0.5, 600)      # long sentences take more
    e = language.bits_per_character(torch.tensor(bits), texts)
    picks = np.random.default_rng(1).integers(600, size=(4000, 600))
    low, high = np.quantile(bits[picks].sum(1) / lengths[picks].sum(1), [0.025, 0.975])
    assert e.value == pytest.approx(bits.sum() / lengths.sum())
    assert (e.low, e.high) == pytest.approx((low, high), abs=0.1 * (high - low))


# --- writing ---

def test_a_model_writes_what_it_believes():
    """Half of its belief is in "a", a quarter in "b", a quarter in the end."""
    logits = torch.full((29,), -math.inf)
    logits[[0, 2, 3]] = torch.tensor([0.25, 0.5, 0.25]).log()
    texts = language.generate(fixed(logits), 400, seed=1)
    first = [text[:1] for text in texts]
    for character, share in (("a", 0.5), ("b", 0.25), ("", 0.25)):
        assert abs(first.count(character) / 400 - share) < 4 * math.sqrt(share * (1 - share) / 400)
    assert texts == language.generate(fixed(logits), 400, seed=1) != language.generate(fixed(logits), 400, seed=2)


def test_writing_ends_where_the_places_end():
    logits = torch.full((29,), -math.inf)
    logits[2] = 0.0
    assert language.generate(fixed(logits), 2) == ["a" * 40] * 2


# --- on the ruler ---

def test_the_model_costs_half_of_what_pytorch_counts():
    model, tokens = small(), torch.zeros(3, 8, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens)
    assert cost.macs(model, tokens) == counter.get_total_flops() // 2 // 3


def test_one_token_costs_each_weight_once_and_four_bits_an_eighth_of_its_bytes():
    """Width 16, one token: a block multiplies 12·16² weights, and one key and one value of 16 numbers in attention."""
    model, token = small(), torch.zeros(1, 1, dtype=torch.int64)
    weights = 2 * 12 * 16 * 16 + 16 * 29
    rows = cost.layer_costs(model, token)
    assert sum(row.macs for row in rows) == weights + 2 * 2 * 16
    assert sum(row.weight_bytes for row in rows) == 4 * weights
    stored = cost.layer_costs(quantize_weights(model, 4, group=16), token)
    assert [row.macs for row in stored] == [row.macs for row in rows]
    assert sum(row.weight_bytes for row in stored) == weights // 2 + weights // 16 * 4
    assert energy.modelled_from_costs(stored).value < energy.modelled_from_costs(rows).value


# --- groups, beside torchao ---

@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [8, 16, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_equal_torchaos(bits, group, symmetric):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import quant_primitives as theirs
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(bits))
    kind = theirs.MappingType.SYMMETRIC if symmetric else theirs.MappingType.ASYMMETRIC
    ends = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale, zero_point = theirs.choose_qparams_affine(weight, kind, (1, group), torch.int8, *ends)
    codes = theirs.quantize_affine(weight, (1, group), scale, zero_point, torch.int8, *ends)
    grid = grid_for(weight, bits, group=group, symmetric=symmetric, signed=True, convention="torchao")
    assert torch.equal(grid.scale, scale.view(5, -1)) and torch.equal(grid.zero_point, zero_point.int().view(5, -1))
    assert torch.equal(quantize(weight, grid).int(), codes.int())


@given(seed=st.integers(0, 1000), bits=st.integers(2, 8), symmetric=st.booleans())
@settings(max_examples=30)
def test_a_group_inside_a_group_never_has_a_wider_step(seed, bits, symmetric):
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) ** 3
    steps = [grid_for(weight, bits, group=g, symmetric=symmetric).scale.repeat_interleave(g, dim=1) for g in (64, 32, 16, 8)]
    assert all((fine <= coarse).all() for coarse, fine in zip(steps, steps[1:]))


def test_intervals_of_differences_are_paired():
    """The same sentences are hard for both models: the difference is known far better than either."""
    texts = language.sample_sentences(300, seed=9)
    model = small()
    plain, coarse = (language.bits_per_sentence(m, texts) for m in (model, quantize_weights(model, 8)))
    alone, apart = language.bits_per_character(plain, texts), language.bits_per_character(coarse - plain, texts)
    assert isinstance(apart, intervals.Estimate) and apart.high - apart.low < 0.1 * (alone.high - alone.low)
