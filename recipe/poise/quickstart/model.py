"""The model and its tokenizer: Qwen3's architecture with half a million parameters, one token per word and number."""

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recipe.poise.quickstart.behaviours import WORDS
from recipe.poise.quickstart.tasks import Problem, numbers

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
THINK, THINK_END = "<think>", "</think>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A word or a signed number with the space before it is one piece, so a partial result is one lookup.
PIECES = r" ?-?\d+| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s"


def make_tokenizer(
    problems: list[Problem], said: str = WORDS, shown: Sequence[int] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges until every number and every word of these problems is one token.

    `said` are the words of responses, `shown` the numbers; by default the quickstart's.

    Bytes are the fallback, so any text can be encoded and decoding gives it back exactly.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # out of reach: merging ends when nothing is left to merge
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, START, END],
    )
    words = [problem.question for problem in problems] + ["user", "assistant", "system", said]
    core.train_from_iterator([*words, *(f" {number}" for number in (numbers() if shown is None else shown))], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, additional_special_tokens=[START]
    )
    # Not "special": decoding for the reward skips special tokens, and the verifier needs to see these.
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in (THINK, THINK_END)])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A model with new weights, float32. Its vocabulary is the tokenizer's: engines mask a tail differently."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)
