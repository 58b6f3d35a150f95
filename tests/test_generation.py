from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_decoders import CHAT, FAMILIES, LENGTH, Decoder, make_decoder, make_encoder
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lightune.errors import InputError
from lightune.generation import TorchGenerator
from lightune.methods import make_method
from lightune.runtime.generation import GenerationOptions, Message
from lightune.runtime.sampling import Sampler, likeliest
from lightune.sources import resolve_model

PROMPTS = ("the lower film", "a", "Über die schöne Straße läuft ein Hund, " * 2, "x y z 1 2 3", "the lower film")


def make_generator(decoder: Decoder, **options: Any) -> TorchGenerator:
    return TorchGenerator(decoder, make_encoder(), CHAT, name="tiny", max_length=options.pop("max_length", LENGTH), **options)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def generator(request: pytest.FixtureRequest) -> Iterator[TorchGenerator]:
    torch.set_num_threads(1)
    return make_generator(make_decoder(request.param))


@pytest.fixture(scope="module")
def llama() -> TorchGenerator:
    return make_generator(make_decoder("llama"))


def tokens_of(generator: TorchGenerator, prompts: tuple[str, ...], options: GenerationOptions) -> list[list[int]]:
    """The tokens of answers that are computed in one batch."""
    drafts = generator._drafts(prompts, options)
    assert len(list(generator._run(drafts))) >= len(drafts)
    return [draft.tokens for draft in drafts]


def test_greedy_answers_are_those_of_transformers(generator: TorchGenerator) -> None:
    options = GenerationOptions(max_tokens=20)
    answers = tokens_of(generator, PROMPTS, options)
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        ids = torch.from_numpy(generator.encode_prompt(prompt).astype(np.int64))[None]
        whole = generator.network.whole
        expected = whole.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
        assert tokens == [token for token in expected if token != 481]
    assert len({tuple(tokens) for tokens in answers}) == len(set(PROMPTS))  # the prompt matters


def test_a_batch_answers_as_its_prompts_alone(generator: TorchGenerator) -> None:
    for options in (GenerationOptions(max_tokens=25), GenerationOptions(max_tokens=25, temperature=1.0, seed=3)):
        together = generator.generate(PROMPTS[:4], options)
        assert together == [generator.generate([prompt], options)[0] for prompt in PROMPTS[:4]]


def test_token_logprobs_are_those_of_the_whole_model(generator: TorchGenerator) -> None:
    rows = [generator.encode(prompt) for prompt in (*PROMPTS, "")]
    found = generator.token_logprobs(rows)
    assert [len(values) for values in found] == [max(len(row) - 1, 0) for row in rows]
    for row, values in zip(rows, found, strict=True):
        if len(row) > 1:
            ids = torch.from_numpy(row.astype(np.int64))[None]
            with torch.no_grad():
                expected = generator.network.whole(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            assert np.allclose(values, expected.numpy(), atol=1e-4)


def test_rows_of_any_number_are_scored_in_their_order(llama: TorchGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [llama.encode("the film " * (number % 7) + "x") for number in range(40)]
    whole = llama.token_logprobs(rows)
    monkeypatch.setattr("lightune.generation.LOGITS", 488 * 3)
    monkeypatch.setattr("lightune.runtime.batched.ROWS", 4)
    for one, other in zip(whole, llama.token_logprobs(rows), strict=True):
        assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "prefix", "reft", "reft:positions=first"])
def test_adapted_networks_answer_as_they_read_whole_texts(method: str) -> None:
    decoder = make_decoder("llama")
    decoder.backbone = make_method(method).apply(decoder.backbone)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for name, parameter in decoder.backbone.named_parameters():
            if parameter.requires_grad and "subspace" not in name:
                parameter += torch.randn_like(parameter) * 0.3
    decoder.eval()
    generator = make_generator(decoder)
    for prompt, tokens in zip(PROMPTS[:3], tokens_of(generator, PROMPTS[:3], GenerationOptions(max_tokens=8)), strict=True):
        row = generator.encode(prompt).tolist()
        for token in tokens:
            with torch.no_grad():
                assert int(decoder(torch.tensor([row]))[0, -1].argmax()) == token
            row.append(token)


def test_rows_that_end_leave_the_batch(llama: TorchGenerator) -> None:
    sizes: list[int] = []
    backbone = llama.network.backbone
    hook = backbone.register_forward_pre_hook(lambda _, __, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    texts = [answer.text for answer in llama.generate(PROMPTS[:4], GenerationOptions(max_tokens=12))]
    stop = texts[0][3:5]
    sizes.clear()
    stopped = llama.generate(PROMPTS[:4], GenerationOptions(max_tokens=12, stop=(stop,)))
    hook.remove()
    assert [answer.text for answer in stopped] == [text.partition(stop)[0] for text in texts]
    assert stopped[0].finish == "stop"
    assert sizes[0] == 4
    assert sizes[-1] < 4
    assert len(sizes) == max(answer.tokens for answer in stopped)


def test_a_stream_joins_to_the_answer(llama: TorchGenerator) -> None:
    options = GenerationOptions(max_tokens=30)
    pieces = list(llama.stream(PROMPTS[0], options))
    (answer,) = llama.generate([PROMPTS[0]], options)
    assert "".join(piece.text for piece in pieces) == answer.text
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish, sum(piece.tokens for piece in pieces)) == (answer.finish, answer.tokens) == ("length", 30)
    assert answer.prompt_tokens == llama.count_tokens(PROMPTS[0])


def test_closing_a_stream_stops_the_work(llama: TorchGenerator) -> None:
    calls: list[int] = []
    hook = llama.network.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = llama.stream(PROMPTS[0], GenerationOptions(max_tokens=30))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    hook.remove()
    assert len(calls) == 1
    assert not torch.is_inference_mode_enabled()


def test_the_caller_may_compute_gradients_between_pieces(llama: TorchGenerator) -> None:
    weight = torch.ones(1, requires_grad=True)
    for piece in llama.stream("a", GenerationOptions(max_tokens=3)):
        (weight * 2).backward()
        assert piece.tokens <= 1
    assert weight.grad is not None
    assert weight.grad.item() == 6


def test_dropout_is_off_and_the_network_stays_as_it_was() -> None:
    decoder = make_decoder("gpt2")
    generator = make_generator(decoder)
    options = GenerationOptions(max_tokens=10)
    calm = generator.generate(["a film"], options)
    decoder.train()
    assert generator.generate(["a film"], options) == calm
    assert decoder.training
    assert decoder.backbone.training


def test_an_end_token_ends_the_answer_and_is_no_part_of_it(llama: TorchGenerator) -> None:
    options = GenerationOptions(max_tokens=12)
    tokens = tokens_of(llama, PROMPTS[:1], options)[0]
    table = llama.prompting.table
    ended = make_generator(llama.network)
    ended.prompting = type(llama.prompting)(
        type(table)(table.pieces, table.special, frozenset({tokens[5]}), (), table.encode), CHAT, LENGTH
    )
    (answer,) = ended.generate(PROMPTS[:1], options)
    first = tokens.index(tokens[5])
    assert (answer.tokens, answer.finish) == (first, "stop")
    assert answer.text == b"".join(table.piece(token) for token in tokens[:first]).decode("utf-8", "replace")


def test_a_conversation_goes_through_its_template(llama: TorchGenerator) -> None:
    ids = llama.encode_prompt([Message("user", "hi"), Message("assistant", "ho"), Message("user", "hu")])
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n<|im_start|>user\nhu<|im_end|>\n<|im_start|>assistant\n"
    assert np.array_equal(ids, llama.encode(text))
    assert ids.dtype == np.int32


def test_prompts_without_room_or_tokens_are_errors(llama: TorchGenerator) -> None:
    long = "the film " * 60
    with pytest.raises(InputError, match=rf"has {llama.count_tokens(long)} tokens, expected fewer than {LENGTH}"):
        llama.stream(long, GenerationOptions())
    with pytest.raises(InputError, match="empty"):
        llama.generate(["a", ""], GenerationOptions())
    with pytest.raises(InputError, match="no chat template"):
        TorchGenerator(llama.network, make_encoder(), None, name="x", max_length=9).count_tokens([Message("user", "a")])
    with pytest.raises(InputError, match="at most"):
        llama.token_logprobs([np.zeros(LENGTH + 1, dtype=np.int32)])


def test_an_answer_ends_where_the_context_does(llama: TorchGenerator) -> None:
    (answer,) = llama.generate(["the film"], GenerationOptions(max_tokens=1000))
    assert (answer.prompt_tokens + answer.tokens, answer.finish) == (LENGTH, "length")


def test_choices_and_seeds(llama: TorchGenerator) -> None:
    choices = ("the film", "a room", "then")
    answers = llama.generate(["x"] * 12, GenerationOptions(choices=choices, temperature=5.0, seed=1))
    assert {answer.text for answer in answers} <= set(choices)
    assert len({answer.text for answer in answers}) > 1  # repetitions of a prompt are drawn apart
    assert answers == llama.generate(["x"] * 12, GenerationOptions(choices=choices, temperature=5.0, seed=1))


def test_bfloat16_changes_a_copy_and_little_else() -> None:
    decoder = make_decoder("llama")
    half = make_generator(decoder, precision=torch.bfloat16)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert all(buffer.dtype != torch.bfloat16 for buffer in half.network.buffers())
    rows = [half.encode(prompt) for prompt in PROMPTS if len(prompt) > 1]
    for one, other in zip(half.token_logprobs(rows), make_generator(decoder).token_logprobs(rows), strict=True):
        assert np.abs(one - other).mean() < 0.1


@pytest.mark.parametrize("filters", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}])
def test_the_filters_are_those_of_transformers(filters: dict[str, Any]) -> None:
    options = GenerationOptions(temperature=1.7, repetition_penalty=1.3, **filters)
    logits, seen = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 3, [1, 5, 5, 30]
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(1.7)])
    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    chain += [warper(filters[name]) for name, warper in warpers.items() if name in filters]
    expected = chain(torch.tensor([seen]), logits[None].clone())[0].softmax(0).numpy()
    places, shares = likeliest(Sampler(options, seen)._penalized(logits.numpy()), options)
    found = np.zeros(60)
    found[places] = shares
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_smollm2_answers_as_in_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        source = resolve_model("smollm2-135m")
    except Exception as error:
        pytest.skip(f"SmolLM2 is not here ({error})")
    file = source.folder / str(source.file)
    whole = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    from lightune.runtime.chat import chat_format
    from lightune.runtime.tokenization import Encoder

    generator = TorchGenerator(
        Decoder(whole), Encoder(tokenizer.backend_tokenizer, 512), chat_format(tokenizer), name="smollm2", max_length=512
    )
    conversations = [
        [Message("user", text)] for text in ("What is the capital of France?", "Name three colours.", "Why is the sky blue, in a word?")
    ]
    answers = generator.generate(conversations, GenerationOptions(max_tokens=24))
    for conversation, answer in zip(conversations, answers, strict=True):
        ids = torch.from_numpy(generator.encode_prompt(conversation).astype(np.int64))[None]
        expected = whole.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
