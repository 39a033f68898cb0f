"""Draws depend on their place only, and are uniform and independent over places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fl_lightning.modeling.dropout import dropout_stream, feature_keys, keep_mask, mix, mix_tensor, token_keys

MASK = 2**64 - 1
CPU = torch.device("cpu")


def splitmix64(seed, count):
    """The published generator in plain Python: a counter that grows by the golden ratio, and the mixing function."""
    values = []
    for n in range(1, count + 1):
        z = (seed + n * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(z ^ (z >> 31))
    return values


def test_mixing_function_gives_the_published_outputs_of_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 5) == published
    states = np.array([(1234567 + n * 0x9E3779B97F4A7C15) & MASK for n in range(1, 6)], dtype=np.uint64)
    assert mix(states.copy()).tolist() == published


def test_both_ways_give_the_same_bits():
    words = np.random.Philox(0).random_raw(10_000)
    words[:4] = 0, 1, MASK, 2**63
    tensor = torch.from_numpy(words.view(np.int64).copy())
    assert np.array_equal(mix_tensor(tensor).numpy().view(np.uint64), mix(words.copy()))


@pytest.mark.parametrize(("p", "features"), [(0.05, 64), (0.5, 30), (0.0, 5)])
def test_masks_are_the_same_on_every_device(p, features):
    tokens, layer = token_keys([dropout_stream(3)], [50], CPU), feature_keys("layer", features, CPU)
    as_tensors = (torch.from_numpy(keys.view(np.int64).copy()) for keys in (tokens, layer))
    expected = keep_mask(tokens, layer, features, p)
    assert expected.shape == (50, features)
    assert torch.equal(keep_mask(*as_tensors, features, p), expected)


def test_a_draw_is_that_of_its_place():
    """Token 2, feature 7 of the plain definition: word 2 of the client's stream, word 1 of the layer's, draw 3."""
    token = np.random.Philox(5).random_raw(3)[2]
    layer = feature_keys("layer", 8, CPU)
    z = int(token) ^ int(layer[0, 1])
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    draw = (z ^ (z >> 31)) >> 48
    signed = draw - 2**16 if draw >= 2**15 else draw
    keys = token_keys([dropout_stream(5)], [3], CPU)
    for p in (0.1, 0.4, 0.9):
        assert keep_mask(keys, layer, 8, p)[2, 7].item() == int(signed >= round(p * 2**16) - 2**15)


def test_draws_depend_neither_on_other_clients_nor_on_how_rows_are_cut():
    layer = feature_keys("layer", 16, CPU)

    def masks(clients, cuts):
        """The masks of each client, {client: (tokens, 16)}, for rows in which it has `cuts[i][client]` tokens."""
        streams = [dropout_stream(client) for client in clients]
        rows = {client: [] for client in clients}
        for cut in cuts:
            counts = [cut[client] for client in clients]
            mask = keep_mask(token_keys(streams, counts, CPU), layer, 16, 0.5)
            for client, part in zip(clients, mask.split(counts), strict=True):
                rows[client].append(part)
        return {client: torch.cat(parts) for client, parts in rows.items()}

    together = masks([0, 1, 2], [{0: 3, 1: 5, 2: 0}, {0: 4, 1: 2, 2: 9}])
    for client, mask in together.items():
        assert torch.equal(masks([client], [{client: len(mask)}])[client], mask)


def keep_probability_is(mask, p):
    """Whether the share of zeros is p, within 4 standard deviations."""
    n = mask.numel()
    return abs(float((mask == 0).float().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_share_of_zeros_is_p_in_every_row_column_and_quarter(p):
    mask = keep_mask(token_keys([dropout_stream(1)], [2000], CPU), feature_keys("layer", 512, CPU), 512, p)
    assert keep_probability_is(mask, p)
    for quarter in range(4):
        assert keep_probability_is(mask[:, quarter::4], p)
    for dim in (0, 1):
        zeros = (mask == 0).double().sum(dim)
        n = mask.shape[dim]
        statistic = float(((zeros - n * p) ** 2 / (n * p * (1 - p))).sum())
        assert 1e-4 < chi2.cdf(statistic, len(zeros)) < 1 - 1e-4


def test_draws_are_uniform():
    words = mix(token_keys([dropout_stream(1)], [500], CPU) ^ feature_keys("layer", 2048, CPU)).view(np.uint16)
    counts = np.bincount(words.ravel() >> 6, minlength=1024)
    expected = words.size / 1024
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert 1e-4 < chi2.cdf(statistic, 1023) < 1 - 1e-4


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten().float(), b.flatten().float()]))[0, 1])


def test_masks_of_clients_layers_steps_and_neighbors_are_uncorrelated():
    streams = [dropout_stream(seed) for seed in (1, 2)]  # neighboring seeds
    layers = [feature_keys(f"layers.{i}.q_proj", 256, CPU) for i in (0, 1)]
    first, second = (token_keys(streams, [1000, 1000], CPU) for _ in range(2))
    masks = [keep_mask(keys, layer, 256, 0.5) for keys in (first, second) for layer in layers]
    clients = masks[0].split(1000)
    pairs = {
        "clients": clients,
        "layers": (masks[0], masks[1]),
        "steps": (masks[0], masks[2]),
        "tokens": (masks[0][:-1], masks[0][1:]),
        "features of a word": (masks[0][:, 0::4], masks[0][:, 1::4]),
        "features": (masks[0][:, :-4], masks[0][:, 4:]),
        # With one key for each token and one for each feature, four corners of a rectangle are the likely pattern.
        "rectangles": (masks[0][::2] ^ masks[0][1::2], (masks[0][::2] ^ masks[0][1::2]).roll(4, 1)),
    }
    for name, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < 4 / a.numel() ** 0.5, name
