from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesgen as bg
from bayesgen import Posterior, site_draws
from bayesgen.errors import OptionError, ResultError, ShapeError

F64 = torch.float64
W = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
ROWS, COLS = 4, 5


def model(y: Tensor) -> None:
    """A linear image of 4 x 5 pixels, a positive scale, twenty data."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=F64), 0.1))
    x = pyro.deterministic("x", (W @ z).reshape(ROWS, COLS))
    pyro.deterministic("bright", x > 0.5)
    pyro.sample("y", dist.Normal(scale * x.flatten(), 0.5).to_event(1), obs=y)


def data(*problems: int) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    z = torch.randn((*problems, 3), generator=rng, dtype=F64)
    return z @ W.T + 0.5 * torch.randn((*problems, 20), generator=rng, dtype=F64)


def fabricated(chains: int = 3, draws: int = 40, problems: int | None = None) -> Posterior:
    """Random numbers in place of draws: statistics must hold for any."""
    lead = (chains, draws) if problems is None else (problems, chains, draws)
    y = data() if problems is None else data(problems)
    rng = torch.Generator().manual_seed(3)
    return Posterior(
        latent={
            "z": torch.randn((*lead, 3), generator=rng, dtype=F64),
            "scale": torch.rand(lead, generator=rng, dtype=F64) + 0.5,
        },
        log_prob=torch.randn(lead, generator=rng, dtype=F64),
        stats={"diverging": torch.zeros(lead, dtype=torch.bool)},
        attributes={"kind": "draws", "method": "hmc"},
        log_density=bg.LogDensity(model, y, batched=problems is not None),
    )


@pytest.fixture(scope="module")
def sampled() -> Posterior:
    return bg.infer(model, data(), chains=2, draws=20, warmup=20, progress=False)


@pytest.fixture(scope="module")
def batched() -> Posterior:
    return bg.infer(model, data(3), batched=True, chains=2, draws=20, warmup=20, progress=False)


@pytest.fixture(scope="module")
def optima() -> Posterior:
    return bg.infer(model, data(), method="map", chains=2, progress=False)


@pytest.fixture(scope="module")
def fake() -> Posterior:
    return fabricated()


# ---------------------------------------------------------------------- what it holds


def test_it_says_what_it_holds(sampled: Posterior) -> None:
    assert sampled.latent_sites == ["z", "scale"]
    assert sampled.deterministic_sites == ["x", "bright"]
    assert (sampled.num_problems, sampled.num_chains, sampled.num_draws) == (None, 2, 20)
    assert not sampled.is_point_estimate
    assert not sampled.interrupted
    assert torch.equal(sampled.observed["y"], data())
    assert repr(sampled) == ("Posterior(2 chains x 20 draws by hmc; sites z, scale, x, bright)")


@pytest.mark.parametrize(
    ("site", "shape"), [("z", (3,)), ("scale", ()), ("x", (4, 5)), ("bright", (4, 5))]
)
def test_shapes_of_one_and_of_many_problems(
    sampled: Posterior, batched: Posterior, site: str, shape: tuple[int, ...]
) -> None:
    for posterior, problems in ((sampled, ()), (batched, (3,)), (batched[1], ())):
        assert posterior.site_shape(site) == shape
        assert posterior.draws(site).shape == (*problems, 2, 20, *shape)
        assert posterior.num_bytes(site) == 8 * posterior.log_prob.numel() * max(
            1, torch.Size(shape).numel()
        )
        for value in (
            posterior.mean(site),
            posterior.std(site),
            posterior.quantile(site, 0.3),
            posterior.exceedance(site, 0.0),
            posterior.mode(site),
            posterior.draw(site, 0),
            *posterior.interval(site),
        ):
            assert value.shape == (*problems, *shape)
        assert posterior.quantile(site, (0.1, 0.2)).shape == (2, *problems, *shape)
        assert torch.cat(list(posterior.chunks(site))).shape == (40, *problems, *shape)


def test_one_problem_of_many_is_the_posterior_of_that_problem(batched: Posterior) -> None:
    assert batched.num_problems == 3
    assert torch.equal(batched.observed["y"], data(3))
    for i in (0, 2, -1):
        one = batched[i]
        assert one.num_problems is None
        assert torch.equal(one.observed["y"], data(3)[i])
        assert torch.equal(one.log_prob, batched.log_prob[i])
        assert torch.equal(one.stats["energy"], batched.stats["energy"][i])
        for site in ("z", "scale", "x"):
            torch.testing.assert_close(one.draws(site), batched.draws(site)[i])
            torch.testing.assert_close(one.mean(site), batched.mean(site)[i])
            torch.testing.assert_close(one.std(site), batched.std(site)[i])
            torch.testing.assert_close(one.mode(site), batched.mode(site)[i])
            torch.testing.assert_close(
                one.quantile(site, [0.2, 0.7]), batched.quantile(site, [0.2, 0.7])[:, i]
            )
    assert len(list(batched)) == 3


def test_indexing_refuses_what_is_not_there(sampled: Posterior, batched: Posterior) -> None:
    with pytest.raises(IndexError, match="problem 3 of 3"):
        batched[3]
    with pytest.raises(ResultError, match="single problem"):
        sampled[0]


def test_misspelt_sites_are_answered_with_those_that_exist(sampled: Posterior) -> None:
    questions: list[Any] = [
        sampled.mean,
        sampled.std,
        sampled.draws,
        sampled.chunks,
        sampled.mode,
        sampled.site_shape,
        lambda site: sampled.draw(site, 0),
        lambda site: sampled.quantile(site, 0.5),
        lambda site: sampled.interval(site),
        lambda site: sampled.exceedance(site, 0.5),
    ]
    for question in questions:
        with pytest.raises(OptionError, match=r"'skale'; expected one of 'z'.*mean 'scale'\?"):
            question("skale")


# ---------------------------------------------------------------------- draws


def test_deterministic_sites_are_those_of_the_latent_draws(fake: Posterior) -> None:
    expected = (fake.draws("z") @ W.T).reshape(3, 40, ROWS, COLS)
    torch.testing.assert_close(fake.draws("x"), expected)
    torch.testing.assert_close(fake.draw("x", 41), expected[1, 1])
    torch.testing.assert_close(fake.draw("x", -1), expected[2, -1])
    assert torch.equal(fake.draw("z", 41), fake.draws("z")[1, 1])
    with pytest.raises(IndexError, match="draw 120 of 120"):
        fake.draw("x", 120)


def test_the_mode_is_the_draw_of_highest_density(fake: Posterior) -> None:
    chain, draw = divmod(int(fake.log_prob.argmax()), 40)
    torch.testing.assert_close(fake.mode("x"), fake.draws("x")[chain, draw])
    assert torch.equal(fake.mode("scale"), fake.draws("scale")[chain, draw])


def test_a_restart_that_broke_down_is_not_the_mode(fake: Posterior) -> None:
    log_prob = fake.log_prob.clone()
    log_prob[0, 0] = torch.nan
    latent = {site: fake.draws(site) for site in fake.latent_sites}
    broken = Posterior(latent, log_prob, {}, {})
    assert torch.equal(broken.mode("z"), fake.mode("z"))


def test_each_problem_has_its_own_mode() -> None:
    posterior = fabricated(problems=3)
    for i in range(3):
        chain, draw = divmod(int(posterior.log_prob[i].argmax()), 40)
        torch.testing.assert_close(posterior.mode("x")[i], posterior.draws("x")[i, chain, draw])


def test_last_draws_continue_a_run(sampled: Posterior, batched: Posterior) -> None:
    for posterior in (sampled, batched):
        last = posterior.last_draws()
        assert torch.equal(last["z"], posterior.draws("z")[..., -1, :])
        assert torch.equal(last["scale"], posterior.draws("scale")[..., -1])
    more = bg.infer(
        model, data(3), batched=True, chains=2, draws=2, warmup=0, start=batched, progress=False
    )
    assert more.num_draws == 2


def test_evaluate_gives_anything_the_model_computes() -> None:
    one, many = fabricated(), fabricated(problems=2)

    def extract(trace: Any) -> dict[str, Tensor]:
        return {"predicted": trace.nodes["y"]["fn"].mean}

    for posterior in (one, many):
        expected = (posterior.draws("z") @ W.T) * posterior.draws("scale")[..., None]
        expected = expected.flatten(-3, -2)
        torch.testing.assert_close(posterior.evaluate(extract)["predicted"], expected)
        some = torch.tensor([5, 0, 119])
        found = posterior.evaluate(extract, some)["predicted"]
        torch.testing.assert_close(found, expected[..., some, :])
    each = torch.tensor([[5, 0], [7, 7]])
    found = many.evaluate(extract, each)["predicted"]
    torch.testing.assert_close(found, torch.stack([expected[0, each[0]], expected[1, each[1]]]))


# ---------------------------------------------------------------------- statistics


@pytest.mark.parametrize("problems", [None, 2])
@pytest.mark.parametrize("chunk_bytes", [1, 4000, 2**24])
def test_statistics_are_those_of_all_draws(
    monkeypatch: pytest.MonkeyPatch, problems: int | None, chunk_bytes: int
) -> None:
    monkeypatch.setattr(site_draws, "CHUNK_BYTES", chunk_bytes)
    posterior = fabricated(draws=10, problems=problems)
    for site in ("z", "scale", "x"):
        drawn = posterior.draws(site)
        flat = drawn.flatten(*((0, 1) if problems is None else (1, 2)))
        axis = 0 if problems is None else 1
        torch.testing.assert_close(posterior.mean(site), flat.mean(axis))
        torch.testing.assert_close(posterior.std(site), flat.std(axis))
        levels = torch.tensor([0.05, 0.5], dtype=F64)
        torch.testing.assert_close(
            posterior.quantile(site, levels.tolist()), torch.quantile(flat, levels, dim=axis)
        )
        above = (flat > 0.7).double().mean(axis)
        torch.testing.assert_close(posterior.exceedance(site, 0.7), above)
    torch.testing.assert_close(posterior.mean("bright"), posterior.exceedance("x", 0.5).float())


def test_quantiles_of_many_draws_come_from_histograms(
    monkeypatch: pytest.MonkeyPatch, fake: Posterior
) -> None:
    levels = [0.1, 0.5, 0.9]
    exact = fake.quantile("x", levels)
    monkeypatch.setattr("bayesgen.posterior.EXACT_QUANTILE_BYTES", 0)
    drawn = fake.draws("x").flatten(0, 1)
    width = (drawn.amax(0) - drawn.amin(0)) / 1024
    found = fake.quantile("x", levels)
    assert ((found - exact).abs() <= 1.001 * width).all()
    assert not torch.equal(found, exact)


def test_intervals_are_central(fake: Posterior) -> None:
    low, high = fake.interval("x", 0.8)
    torch.testing.assert_close(low, fake.quantile("x", 0.1))
    torch.testing.assert_close(high, fake.quantile("x", 0.9))


@pytest.mark.parametrize("level", [-0.1, 1.5, [], [0.5, 2.0], float("nan")])
def test_levels_are_probabilities(fake: Posterior, level: Any) -> None:
    with pytest.raises(OptionError, match=r"level: got .* between 0 and 1"):
        fake.quantile("x", level)


@pytest.mark.parametrize("mass", [0.0, 1.0, 90.0])
def test_masses_are_probabilities(fake: Posterior, mass: float) -> None:
    with pytest.raises(OptionError, match=r"mass: got .* between 0 and 1"):
        fake.interval("x", mass)


def test_thresholds_may_differ_between_problems_and_pixels() -> None:
    posterior = fabricated(problems=2)
    threshold = torch.linspace(-1.0, 1.0, 40, dtype=F64).reshape(2, ROWS, COLS)
    found = posterior.exceedance("x", threshold)
    expected = (posterior.draws("x") > threshold[:, None, None]).double().mean((1, 2))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ShapeError, match="threshold"):
        posterior.exceedance("x", torch.zeros(7))


def test_optima_are_not_taken_for_draws(optima: Posterior) -> None:
    questions: list[Any] = [
        optima.mean,
        optima.std,
        lambda site: optima.quantile(site, 0.5),
        optima.interval,
        lambda site: optima.exceedance(site, 0.5),
    ]
    for question in questions:
        with pytest.raises(ResultError, match=r"optima of 2 restarts.*mode\('x'\)"):
            question("x")
    torch.testing.assert_close(optima.mode("x"), (W @ optima.mode("z")).reshape(ROWS, COLS))
    assert optima.draws("x").shape == (2, 1, ROWS, COLS)
    assert "optima of 2 restarts by map" in repr(optima)


def test_without_the_model_an_error_says_how_to_get_it(fake: Posterior) -> None:
    latent = {site: fake.draws(site) for site in fake.latent_sites}
    known = {"x": {"mean": fake.mean("x"), "std": fake.std("x")}}
    bare = Posterior(latent, fake.log_prob, {}, {"method": "hmc"}, None, known)
    assert not bare.has_model
    assert bare.deterministic_sites == ["x"]
    assert bare.site_shape("x") == (ROWS, COLS)
    assert torch.equal(bare.std("x"), fake.std("x"))
    torch.testing.assert_close(bare.quantile("z", 0.5), fake.quantile("z", 0.5))
    assert bare.observed == {}
    for question in (bare.draws, bare.mode, lambda site: bare.quantile(site, 0.5)):
        with pytest.raises(ResultError, match=r"Posterior.load\(path, model, \*args\)"):
            question("x")


# ---------------------------------------------------------------------- memory

MEMORY = """
    import resource, sys, torch, pyro, pyro.distributions as dist
    import bayesgen as bg

    def model(y):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        x = pyro.deterministic("x", (z @ W).reshape(128, 128))
        pyro.sample("y", dist.Normal(x[::8, ::8], 0.1).to_event(2), obs=y)

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    W = torch.randn(4, 128 * 128, generator=rng)
    log_density = bg.LogDensity(model, torch.zeros(16, 16))
    draws = int(sys.argv[1])
    z = torch.randn(64, draws, 4, generator=rng)
    posterior = bg.Posterior({"z": z}, torch.zeros(64, draws), {}, {}, log_density)
    posterior.mean("x"), posterior.std("x"), posterior.exceedance("x", 0.5)
    # Histograms for both: few draws would be sorted.
    import bayesgen.posterior
    bayesgen.posterior.EXACT_QUANTILE_BYTES = 0
    posterior.quantile("x", [0.05, 0.95])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_draws() -> None:
    """64 chains of 2000 images of 128 x 128 pixels would take 8 GB."""
    code = textwrap.dedent(MEMORY)
    peaks = []
    for draws in (200, 2000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(draws)], capture_output=True, text=True, check=True
        )
        peaks.append(float(done.stdout))
    latents = 64 * 2000 * 4 * 4 / 2**20
    assert peaks[1] < peaks[0] + latents + 80.0  # MiB; 80 for what the allocator keeps
