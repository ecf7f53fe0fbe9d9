"""Scores of single rollouts against autograd row by row, and energies against norms that are known."""

import pytest
import torch
import transformers as hf

from recipe.poise.studies.energies import DEFAULT, Pass, measures
from recipe.poise.studies.scores import batches_by_length, row_scores

VOCABULARY, HIDDEN = 23, 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small Qwen3, and where it is saved."""
    torch.manual_seed(0)
    config = hf.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, str(folder)


def rows(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    length_R = torch.randint(1, 9, (count,), generator=generator)
    prompt_R = torch.randint(1, 6, (count,), generator=generator)
    ids = [
        torch.randint(0, VOCABULARY, (int(p + n),), generator=generator)
        for p, n in zip(prompt_R, length_R, strict=True)
    ]
    return ids, length_R


def gradient(model, ids, weight_T):
    """Of the weighted sum of one row's response log-probs, by autograd."""
    log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
    parts = torch.autograd.grad((log_p[-len(weight_T) :] * weight_T).sum(), list(model.parameters()))
    return [part.flatten() for part in parts]


def test_scores_are_autograds(model):
    """Of rows of all lengths in small batches, for two sets of token weights."""
    model, path = model
    ids, length_R = rows()
    weight_WRT = torch.stack(
        [torch.ones(len(ids), 8), torch.randn(len(ids), 8, generator=torch.Generator().manual_seed(1))]
    )
    found = row_scores(path, ids, weight_WRT, length_R, directions=5, seed=3, batch_tokens=24)
    generator = torch.Generator().manual_seed(3)
    signs = [
        (torch.randint(0, 2, (5, p.numel()), generator=generator, dtype=torch.int8) * 2 - 1).float()
        for p in model.parameters()
    ]
    for scores, weight_RT in zip(found, weight_WRT, strict=True):
        for row, length in enumerate(length_R.tolist()):
            parts = gradient(model, ids[row], weight_RT[row, :length])
            norm = sum(float(part.double().square().sum()) for part in parts)
            projected_K = sum(sign.double() @ part.double() for sign, part in zip(signs, parts, strict=True))
            assert float(scores.norm_R[row]) == pytest.approx(norm, rel=1e-4)
            torch.testing.assert_close(scores.projected_RK[row], projected_K, rtol=1e-3, atol=1e-3)
    doubled = found[0].scaled(torch.full((len(ids),), 2.0))
    torch.testing.assert_close(doubled.norm_R, 4 * found[0].norm_R)
    torch.testing.assert_close(doubled.projected_RK, 2 * found[0].projected_RK)


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [5, 3, 9, 40, 3, 7]
    found = batches_by_length(lengths, 20)
    assert sorted(sum(found, [])) == list(range(6))
    assert all(len(part) == 1 or len(part) * max(lengths[row] for row in part) <= 20 for part in found)
    assert len(found) < 6


def passed(R=4, T=6, seed=0):
    """A pass over rows of random lengths, with the logits that it comes from."""
    generator = torch.Generator().manual_seed(seed)
    mask_RT = torch.arange(T) < torch.tensor([[6], [1], [3], [4]])
    last_RTD = torch.randn(R, T, HIDDEN, generator=generator)
    head_VD = torch.randn(VOCABULARY, HIDDEN, generator=generator) / 2
    token_RT = torch.randint(0, VOCABULARY, (R, T), generator=generator)
    token_RT[0, 1] = token_RT[0, 0]  # the same token twice
    log_p = (last_RTD @ head_VD.T).log_softmax(-1)
    keep = mask_RT.unsqueeze(2).float()
    d_RTV = (torch.nn.functional.one_hot(token_RT, VOCABULARY) - log_p.exp()) * keep
    log_prob_RT = log_p.gather(2, token_RT.unsqueeze(2)).squeeze(2) * mask_RT
    block_RTD = torch.randn(R, T, HIDDEN, generator=generator) * keep
    return Pass(log_prob_RT, token_RT, mask_RT, d_RTV, last_RTD * keep, block_RTD, head_VD), last_RTD


def test_the_output_embeddings_part_is_its_gradients_norm():
    seen, last_RTD = passed()
    found = measures(seen)
    for row in range(4):
        head_VD = seen.head_VD.clone().requires_grad_()
        log_p = (last_RTD[row] @ head_VD.T).log_softmax(-1).gather(1, seen.token_RT[row, :, None]).squeeze(1)
        (part,) = torch.autograd.grad((log_p * seen.mask_RT[row]).sum(), head_VD)
        assert float(found["|sum d h|^2 (output embedding)"][row]) == pytest.approx(
            float(part.square().sum()), rel=1e-3
        )


def test_energies_are_what_their_names_say():
    seen, _ = passed()
    found = measures(seen)
    for row in range(4):
        length = int(seen.mask_RT[row].sum())
        pi = seen.log_prob_RT[row, :length].double().exp()
        surprising = (1 - pi) * pi.log().abs()
        d, back = seen.d_RTV[row, :length].double(), (seen.d_RTV[row, :length] @ seen.head_VD).double()
        block = seen.block_RTD[row, :length].double()
        by_token = torch.zeros(VOCABULARY).double().index_add_(0, seen.token_RT[row, :length], 1 - pi)
        expected = {
            "length": length,
            "sum (1-pi)^2": (1 - pi).square().sum(),
            DEFAULT: 0.9 * surprising.square().sum() + 0.1 * surprising.sum().square(),
            "sum |d|^2": d.square().sum(),
            "NLL^2": pi.log().sum().square(),
            "(sum (1-pi))^2": (1 - pi).sum().square(),
            "(sum |d|)^2": d.norm(dim=1).sum().square(),
            "sum by token id (1-pi), squared": by_token.square().sum(),
            "|sum d|^2": d.sum(0).square().sum(),
            "|sum d W|^2": back.sum(0).square().sum(),
            "|sum d h_block|^2": (d.T @ block).square().sum(),
            "|sum (d W) h_block|^2": (back.T @ block).square().sum(),
            "|sum (1-pi) h_block|^2": ((1 - pi) @ block).square().sum(),
        }
        for name, value in expected.items():
            assert float(found[name][row]) == pytest.approx(float(value), rel=1e-3, abs=1e-6), name
    assert all(value.dtype == torch.float64 and value.shape == (4,) for value in found.values())


def test_a_sketch_is_right_on_average():
    seen, _ = passed()
    drawn = torch.stack([measures(seen, seed)["|sum d h|^2, sketch 16x16"] for seed in range(200)])
    exact = measures(seen)["|sum d h|^2 (output embedding)"]
    assert torch.allclose(drawn.mean(0), exact, rtol=0.15)
