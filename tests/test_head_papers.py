"""The heads against the equations of their papers, written out again: loops over instances, in numpy where there is no more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pathfm.heads import Criterion, Head, build_head, moments, pack
from pathfm.heads.clam import smooth_svm
from pathfm.heads.transmil import PositionalEncoding, nystrom, pseudo_inverse, segment_means

Array = NDArray[np.float64]
DIM, OUTPUTS, HIDDEN = 5, 3, 16


def _head(name: str, n_outputs: int = OUTPUTS, **options: Any) -> Head:
    torch.manual_seed(1)
    head = build_head(name, DIM, n_outputs, **{"hidden": HIDDEN, "attention": 8, "dropout": 0.0} | options)
    head.standardise([moments(torch.randn(50, DIM) * 3 + 1)])
    return head.double().eval()


def _bag(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def _weights(head: Head) -> dict[str, Array]:
    return {key.removeprefix("pooling."): value.numpy() for key, value in head.state_dict().items()}


def _hidden(w: dict[str, Array], bag: Tensor, at: str = "hidden") -> Array:
    """relu(W (x - m) / s + b), instance by instance."""
    rows = [(x - w[f"{at}.mean"]) / w[f"{at}.std"] for x in bag.numpy()]
    return np.stack([np.maximum(w[f"{at}.linear.weight"] @ x + w[f"{at}.linear.bias"], 0) for x in rows])


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _scores(w: dict[str, Array], hidden: Array, at: str = "body.", branch: int = 0) -> Array:
    """w'(tanh(Vh) * sigmoid(Uh)), equation 9 of Ilse et al. before its softmax; V are the first rows of the gates."""
    v, u = np.split(w[f"{at}gates.weight"], 2)
    bv, bu = np.split(w[f"{at}gates.bias"], 2)
    own, offset = w[f"{at}score.weight"][branch], w[f"{at}score.bias"][branch]
    return np.array([own @ (np.tanh(v @ h + bv) * _sigmoid(u @ h + bu)) + offset for h in hidden])


def _attended(scores: Array, hidden: Array) -> Array:
    return np.sum([a * h for a, h in zip(_softmax(scores), hidden, strict=True)], axis=0)


def _cross_entropy(classes: list[int]) -> Criterion:
    codes = torch.tensor(classes)
    return Criterion(lambda logits: functional.cross_entropy(logits, codes, reduction="none"), codes)


def _nll(logits: Array, code: int) -> float:
    return float(-np.log(_softmax(logits)[code]))


def _close(found: Tensor, wanted: Any) -> None:
    np.testing.assert_allclose(found.detach().numpy(), np.asarray(wanted), rtol=1e-6, atol=1e-8)


# -- pooling by a mean, a maximum, and attention ---------------------------------------------------------------------


def test_mean_and_max_pooling_written_out() -> None:
    bag = _bag(7)
    w = _weights(_head("mean"))
    h = _hidden(w, bag.mean(dim=0, keepdim=True))[0]
    _close(_head("mean")(pack([bag])).logits[0], w["classifier.weight"] @ h + w["classifier.bias"])
    w = _weights(_head("max"))
    instances = np.stack([w["classifier.weight"] @ h + w["classifier.bias"] for h in _hidden(w, bag)])
    _close(_head("max")(pack([bag])).logits[0], instances.max(axis=0))


@pytest.mark.parametrize("n", [7, 200])
def test_attention_is_equation_8_of_ilse_2018(n: int) -> None:
    head, bag = _head("abmil"), _bag(n)
    w = _weights(head)
    hidden = _hidden(w, bag, "body.hidden")
    scores = np.array(
        [
            w["body.score.weight"][0] @ np.tanh(w["body.gates.weight"] @ h + w["body.gates.bias"])
            + w["body.score.bias"][0]
            for h in hidden
        ]
    )
    output = head(pack([bag]))
    _close(output.attention[:, 0], _softmax(scores))
    _close(output.logits[0], w["classifier.weight"] @ _attended(scores, hidden) + w["classifier.bias"])


@pytest.mark.parametrize("n", [7, 200])
def test_gated_attention_is_equation_9_of_ilse_2018(n: int) -> None:
    head, bag = _head("gated-abmil"), _bag(n)
    w = _weights(head)
    hidden = _hidden(w, bag, "body.hidden")
    scores = _scores(w, hidden)
    output = head(pack([bag]))
    _close(output.attention[:, 0], _softmax(scores))
    _close(output.logits[0], w["classifier.weight"] @ _attended(scores, hidden) + w["classifier.bias"])


@pytest.mark.parametrize("name", ["gated-abmil-mb", "clam-mb"])
def test_each_branch_of_attention_has_its_own_sum_and_its_own_linear_layer(name: str) -> None:
    head, bag = _head(name), _bag(9)
    w = _weights(head)
    hidden = _hidden(w, bag, "body.hidden")
    output = head(pack([bag]))
    for c in range(OUTPUTS):
        scores = _scores(w, hidden, branch=c)
        _close(output.attention[:, c], _softmax(scores))
        logit = w["classifier.weight"][c] @ _attended(scores, hidden) + w["classifier.bias"][c]
        _close(output.logits[0, c], logit)


# -- CLAM ------------------------------------------------------------------------------------------------------------


def _svm(logits: Array, label: int) -> float:
    """logsumexp(x + 1[j != y]) - x_y."""
    margins = [x + (j != label) for j, x in enumerate(logits)]
    return math.log(sum(math.exp(x) for x in margins)) - float(logits[label])


def _instance_loss(w: dict[str, Array], hidden: Array, scores: list[Array], label: int, b: int, *, rest: bool) -> float:
    """The clustering of instances of one bag, class by class; `scores` of each class's branch."""
    total, half, most = 0.0, min(b, len(hidden) // 2), min(b, len(hidden))
    for c in range(OUTPUTS):
        ranked = sorted(range(len(hidden)), key=lambda i: -scores[c][i])
        examples = [(i, 1) for i in ranked[:half]] + [(i, 0) for i in ranked[-half:]]
        if c != label:
            examples = [(i, 0) for i in ranked[:most]] if rest else []
        rows = w["instances.classifiers.weight"][2 * c : 2 * c + 2], w["instances.classifiers.bias"][2 * c : 2 * c + 2]
        losses = [_svm(rows[0] @ hidden[i] + rows[1], to) for i, to in examples]
        total += sum(losses) / max(len(losses), 1)
    return total / OUTPUTS if rest else total


@pytest.mark.parametrize("rest", [True, False])
@pytest.mark.parametrize("name", ["clam-sb", "clam-mb"])
def test_clam_costs_seven_tenths_of_the_bag_and_three_of_its_most_and_least_attended_instances(
    name: str, rest: bool
) -> None:
    head, bags, labels = _head(name, exclusive=rest).train(), [_bag(40), _bag(11, 1), _bag(3, 2)], [2, 0, 1]
    w, criterion = _weights(head), _cross_entropy(labels)
    found = head.losses(pack(bags), criterion)
    logits = head(pack(bags)).logits.detach().numpy()
    for number, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        hidden = _hidden(w, bag, "body.hidden")
        scores = [_scores(w, hidden, branch=c if name == "clam-mb" else 0) for c in range(OUTPUTS)]
        instances = _instance_loss(w, hidden, scores, label, 8, rest=rest)
        _close(found[number], 0.7 * _nll(logits[number], label) + 0.3 * instances)


def test_clam_takes_its_weights_and_counts_as_options() -> None:
    head, bag = _head("clam-sb", bag_weight=0.5, instances=3), _bag(40)
    w = _weights(head)
    hidden = _hidden(w, bag, "body.hidden")
    instances = _instance_loss(w, hidden, [_scores(w, hidden)] * OUTPUTS, 1, 3, rest=True)
    logits = head(pack([bag])).logits[0].detach().numpy()
    _close(head.losses(pack([bag]), _cross_entropy([1]))[0], 0.5 * _nll(logits, 1) + 0.5 * instances)


def test_the_smooth_svm_is_the_log_sum_of_exponentials_with_a_margin() -> None:
    logits = torch.randn(20, 2, dtype=torch.float64) * 4
    for label in (0, 1):
        _close(smooth_svm(logits, label), [_svm(row.numpy(), label) for row in logits])


# -- DSMIL -----------------------------------------------------------------------------------------------------------


def test_dsmil_is_the_mean_of_the_largest_instance_and_of_attention_by_likeness_to_it() -> None:
    head, bag = _head("dsmil"), _bag(9)
    w = _weights(head)
    hidden = _hidden(w, bag)
    instances = np.stack([w["instances.weight"] @ h + w["instances.bias"] for h in hidden])
    inner = [np.maximum(w["query.0.weight"] @ h + w["query.0.bias"], 0) for h in hidden]
    queries = [np.tanh(w["query.2.weight"] @ one + w["query.2.bias"]) for one in inner]
    output, sums = head(pack([bag])), []
    for c in range(OUTPUTS):
        critical = queries[int(instances[:, c].argmax())]
        attention = _softmax(np.array([q @ critical / math.sqrt(len(q)) for q in queries]))
        _close(output.attention[:, c], attention)
        sums.append(attention @ hidden)
    attended = w["classifier.weight"] @ np.concatenate(sums) + w["classifier.bias"]
    largest = instances.max(axis=0)
    _close(output.logits[0], (largest + attended) / 2)
    _close(head.losses(pack([bag]), _cross_entropy([2]))[0], 0.5 * _nll(largest, 2) + 0.5 * _nll(attended, 2))


# -- TransMIL --------------------------------------------------------------------------------------------------------


def _attention(q: Array, k: Array, v: Array) -> Array:
    return np.stack([_softmax(k @ one / math.sqrt(len(one))) for one in q]) @ v


def _qkv(n: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(n)
    q, k, v = torch.randn(3, 1, 2, n, 4, dtype=torch.float64)
    return q, k, v


def test_nystrom_attention_of_few_tokens_is_softmax_attention() -> None:
    q, k, v = _qkv(10)
    found = nystrom(q, k, v, landmarks=10, iterations=6)
    for head in range(2):
        _close(found[0, head], _attention(q[0, head].numpy(), k[0, head].numpy(), v[0, head].numpy()))


@pytest.mark.parametrize("n", [24, 23, 17])
def test_nystrom_attention_is_three_products_with_the_inverse_of_that_among_landmarks(n: int) -> None:
    q, k, v = _qkv(n)
    found = nystrom(q * 3, k, v, landmarks=8, iterations=20)
    length = math.ceil(n / 8)
    for head in range(2):
        one_q, one_k, one_v = (x[0, head].numpy() for x in (q * 3, k, v))
        near_q, near_k = (
            np.stack([x[start : start + length].mean(axis=0) for start in range(0, n, length)]) for x in (one_q, one_k)
        )
        eye = np.eye(len(near_q))
        first, middle = _attention(one_q, near_k, eye), _attention(near_q, near_k, eye)
        _close(found[0, head], first @ np.linalg.pinv(middle) @ _attention(near_q, one_k, one_v))


def test_six_iterations_are_near_the_inverse_of_a_softmax_matrix() -> None:
    torch.manual_seed(0)
    matrix = torch.softmax(torch.randn(2, 30, 30, dtype=torch.float64) + 6 * torch.eye(30), dim=-1)
    torch.testing.assert_close(pseudo_inverse(matrix, 6), torch.linalg.pinv(matrix), rtol=1e-3, atol=1e-3)


def test_segment_means_count_every_token_once() -> None:
    tokens = torch.arange(7.0).reshape(1, 1, 7, 1)
    assert segment_means(tokens, 3).flatten().tolist() == [1.0, 4.0, 6.0]
    assert segment_means(tokens[:, :, :6], 3).flatten().tolist() == [1.0, 4.0]


def test_the_positional_encoding_is_three_convolutions_and_the_tokens_themselves() -> None:
    torch.manual_seed(0)
    layer, tokens = PositionalEncoding(4).double(), torch.randn(25, 4, dtype=torch.float64)
    picture = tokens.numpy().reshape(5, 5, 4)
    wanted = picture.copy()
    for kernel in layer.kernels:
        weight, reach = kernel.weight.detach().numpy(), kernel.padding[0]
        padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)))
        for y, x, c in np.ndindex(5, 5, 4):
            window = padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1, c]
            wanted[y, x, c] += (weight[c, 0] * window).sum() + kernel.bias[c].item()
    _close(layer(tokens, 5), wanted.reshape(25, 4))


@pytest.mark.parametrize(("n", "side"), [(1, 1), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_transmil_fills_the_square_with_its_first_instances_and_reads_the_class_token(n: int, side: int) -> None:
    head, bag = _head("transmil", heads=2, landmarks=6), _bag(n)
    pooling = head.pooling
    hidden = torch.from_numpy(_hidden(_weights(head), bag))
    square = torch.stack([hidden[i % n] for i in range(side**2)])
    tokens = pooling.first(torch.cat([pooling.token, square]))
    tokens = torch.cat([tokens[:1], pooling.position(tokens[1:], side)])
    token = pooling.norm(pooling.second(tokens)[0])
    _close(head(pack([bag])).logits[0], pooling.classifier(token).detach())


def test_a_layer_of_transmil_adds_attention_and_a_convolution_of_the_values_along_the_tokens() -> None:
    layer, n = _head("transmil", heads=2).pooling.first, 12
    tokens = torch.randn(n, HIDDEN, dtype=torch.float64)
    weight = layer.project.weight.detach().numpy()
    parts = np.split(layer.norm(tokens).detach().numpy() @ weight.T, 3, axis=1)
    found = []
    for head in range(2):
        q, k, v = (part[:, head * 8 : head * 8 + 8] for part in parts)
        kernel = layer.residual.weight[head, 0].detach().numpy()
        padded = np.pad(v, ((16, 16), (0, 0)))
        near = np.stack([kernel @ padded[i : i + 33] for i in range(n)])
        found.append(_attention(q, k, v) + near)
    wanted = tokens + layer.out(torch.from_numpy(np.concatenate(found, axis=1)))
    _close(layer(tokens), wanted.detach())


def test_the_pseudo_inverse_of_half_precision_matrices_is_that_of_their_values() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.softmax(torch.randn(2, 32, 32, generator=generator) * 3, dim=-1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = pseudo_inverse(matrices, 6)
    assert found.dtype == torch.float32
    assert torch.equal(found, pseudo_inverse(matrices.float(), 6))


# -- DTFD ------------------------------------------------------------------------------------------------------------


def _tiers(
    w: dict[str, Array], hidden: Array, group_of: list[int], distill: str, rank_by: str = "activation"
) -> tuple[list[Array], Array, Array]:
    """The logits of the first tier, those of the second, and the attention, of one bag."""
    scores, groups = _scores(w, hidden), max(group_of) + 1
    first, handed, owner = [], [], []
    within = np.zeros(len(hidden))
    for group in range(groups):
        rows = [i for i, g in enumerate(group_of) if g == group]
        within[rows] = _softmax(scores[rows])
        pooled = within[rows] @ hidden[rows]
        first.append(w["tier1.weight"] @ pooled + w["tier1.bias"])
        # the class activation of an instance, and in the paper its probability by it
        ranks = np.stack([w["tier1.weight"] @ (within[i] * hidden[i]) for i in rows])
        columns = range(ranks.shape[1])
        if rank_by == "probability":
            ranks = np.stack([_softmax(one) for one in ranks])
            columns = [1] if ranks.shape[1] == 2 else columns
        best = [rows[int(ranks[:, c].argmax())] for c in columns]
        worst = [rows[int(ranks[:, c].argmin())] for c in columns]
        chosen = {"maxs": best, "maxmins": best + worst, "afs": []}[distill]
        features = [pooled] if distill == "afs" else [hidden[i] for i in chosen]
        handed += features
        owner += [group] * len(features)
    weights = _softmax(_scores(w, np.stack(handed), at=""))
    second = w["classifier.weight"] @ (weights @ np.stack(handed)) + w["classifier.bias"]
    share = [sum(weight for weight, g in zip(weights, owner, strict=True) if g == group) for group in range(groups)]
    return first, second, np.array([within[i] * share[g] for i, g in enumerate(group_of)])


@pytest.mark.parametrize(
    ("n_outputs", "rank_by"),
    [(1, "activation"), (2, "activation"), (3, "activation"), (2, "probability"), (3, "probability")],
)
@pytest.mark.parametrize("distill", ["afs", "maxmins", "maxs"])
def test_dtfd_attends_over_what_each_pseudo_bag_hands_on(distill: str, n_outputs: int, rank_by: str) -> None:
    head, bag = _head("dtfd", n_outputs, distill=distill, rank_by=rank_by), _bag(13)
    head.pooling.body.score.weight.data *= 30  # attention decides over the activation, and so over the choice
    w = _weights(head)
    _, logits, attention = _tiers(w, _hidden(w, bag, "body.hidden"), [i % 4 for i in range(13)], distill, rank_by)
    output = head(pack([bag]))
    _close(output.logits[0], logits)
    _close(output.attention[:, 0], attention)


@pytest.mark.parametrize("distill", ["afs", "maxmins", "maxs"])
def test_dtfd_costs_the_mean_over_pseudo_bags_dealt_at_random_and_the_second_tier(distill: str) -> None:
    head, bags, labels = _head("dtfd", distill=distill).train(), [_bag(13), _bag(2, 1)], [2, 0]
    w = _weights(head)
    torch.manual_seed(3)
    found = head.losses(pack(bags), _cross_entropy(labels))
    torch.manual_seed(3)
    for number, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        groups = min(4, len(bag))
        dealt = [i % groups for i in torch.randperm(len(bag)).tolist()]
        first, second, _ = _tiers(w, _hidden(w, bag, "body.hidden"), dealt, distill)
        _close(found[number], np.mean([_nll(one, label) for one in first]) + _nll(second, label))


def test_dtfd_ranks_by_each_output_alone_whatever_the_others_are() -> None:
    # thresholds, labels, a risk: the same number on both logits of an instance says that it speaks for both, not for none
    head = _head("dtfd", 2, distill="maxs", groups=1)
    head.pooling.body.score.weight.data.zero_()
    hidden = torch.rand(6, HIDDEN, dtype=torch.float64)
    head.pooling.tier1.weight.data[1] = head.pooling.tier1.weight.data[0]
    chosen = head.pooling._chosen(hidden, torch.full((6, 1), 1 / 6, dtype=torch.float64), torch.ones(6, 1, dtype=bool))
    _close(chosen, hidden[[int((hidden @ head.pooling.tier1.weight[0].detach()).argmax())] * 2])


# -- transformers ----------------------------------------------------------------------------------------------------


def _torch_attention(block: nn.Module, heads: int) -> nn.MultiheadAttention:
    """torch's own attention with the weights of a block."""
    layer = nn.MultiheadAttention(HIDDEN, heads, batch_first=True).double().eval()
    layer.load_state_dict(
        {
            "in_proj_weight": torch.cat([block.query.weight, block.keys_values.weight]),
            "in_proj_bias": torch.cat([block.query.bias, block.keys_values.bias]),
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    return layer


def _torch_layer(block: nn.Module, heads: int, expansion: int) -> nn.TransformerEncoderLayer:
    """torch's own transformer layer with the weights of a block."""
    layer = nn.TransformerEncoderLayer(
        HIDDEN, heads, expansion * HIDDEN, 0.0, functional.gelu, batch_first=True, norm_first=True
    ).double()
    found = {f"self_attn.{key}": value for key, value in _torch_attention(block, heads).state_dict().items()}
    for theirs, ours in (("norm1", block.norm), ("norm2", block.perceptron[0])):
        found |= {f"{theirs}.{key}": value for key, value in ours.state_dict().items()}
    for theirs, ours in (("linear1", block.perceptron[1]), ("linear2", block.perceptron[4])):
        found |= {f"{theirs}.{key}": value for key, value in ours.state_dict().items()}
    layer.load_state_dict(found)
    return layer


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_transformer_is_that_of_torch_read_at_its_class_token(layers: int) -> None:
    head, bag = _head("transformer", layers=layers, heads=4), _bag(9)
    pooling = head.pooling
    hidden = torch.from_numpy(_hidden(_weights(head), bag))
    tokens = torch.cat([pooling.token, hidden])[None]
    for block in pooling.blocks:
        normal = block.norm(tokens)
        looks = _torch_attention(block, 4)(normal, normal, normal)[1][0, 0, 1:]  # of the class token, mean over heads
        tokens = _torch_layer(block, 4, 4)(tokens)
    output = head(pack([bag]))
    _close(output.logits[0], pooling.classifier(pooling.norm(tokens[0, 0])).detach())
    _close(output.attention[:, 0], (looks / looks.sum()).detach())


def test_the_latent_head_looks_at_the_instances_once_and_then_at_itself() -> None:
    head, bag = _head("perceiver", latents=3, heads=4, layers=2), _bag(9)
    pooling = head.pooling
    context = pooling.instances(torch.from_numpy(_hidden(_weights(head), bag)))[None]
    latents, look = pooling.latents[None], pooling.looking
    found, attention = _torch_attention(look, 4)(look.norm(latents), context, context)
    latents = latents + found
    latents = latents + look.perceptron(latents)
    for block in pooling.blocks:
        latents = _torch_layer(block, 4, 2)(latents)
    output = head(pack([bag]))
    _close(output.logits[0], pooling.classifier(pooling.norm(latents[0].mean(dim=0))).detach())
    _close(output.attention[:, 0], attention[0].mean(dim=0).detach())
