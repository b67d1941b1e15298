from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from pathfm.bags import BagDataset, collate
from pathfm.datamodule import Rows, SlideDataModule, balanced_odds, batch_size
from pathfm.epochs import EpochOrder
from pathfm.errors import InputError, MissingExtraError
from pathfm.fit import fit
from pathfm.heads import build_head, pack
from pathfm.keeping import free_bytes, keep_bags
from pathfm.loggers import training_loggers
from pathfm.milmodule import MILModule, adamw, averaged, first_of_each, rate
from pathfm.settings import TrainSettings
from pathfm.targets import Classes, Task
from pathfm.targets.cox import Cox
from pathfm.together import Job, fit_all
from pathfm.trainer import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import EmbeddingsCohort
    from lightning.pytorch.loggers import Logger

    from pathfm.bags import Batch

QUICK = TrainSettings(epochs=3, hidden=8, attention=4, lr=1e-2, min_epochs=1, device="cpu", loggers=[])
TASK = Task((Classes("cancer", ("0", "1")),))
TRUTH = np.array([[i % 2] for i in range(9)], np.float32)
ROWS = Rows(range(6), range(6, 9))


@pytest.fixture
def bags() -> BagDataset:
    drawn = torch.Generator().manual_seed(0)
    return BagDataset([torch.randn(3 + i, 5, generator=drawn) + i % 2 for i in range(9)], TRUTH)


def _trainer(folder: Path, **more: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **({"logger": False, "max_epochs": 1} | more),  # type: ignore[arg-type]
    )


@pytest.mark.filterwarnings("ignore")  # Lightning's advice to the user
def test_the_module_runs_under_a_trainer_of_the_users_own(bags: BagDataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MILModule(build_head("gated-abmil", 5, 2, hidden=8, attention=4), TASK, QUICK)
    before = module.head(pack([bags.features(0)])).logits.detach()
    _trainer(tmp_path).fit(module, DataLoader(bags, batch_size=3, collate_fn=collate))
    assert not torch.equal(module.head(pack([bags.features(0)])).logits, before)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_of_the_users_own_keeps_bags_and_predicts_by_the_running_mean(
    bags: BagDataset, tmp_path: Path
) -> None:
    data = SlideDataModule(bags, ROWS, TASK, replace(QUICK, ema=0.9, keep="memory"))
    module, trainer = data.module("mean"), _trainer(tmp_path)
    assert bags.place is None
    trainer.fit(module, datamodule=data)
    assert bags.place == torch.device("cpu")
    found = trainer.predict(module, DataLoader(bags, batch_size=4, collate_fn=collate))
    packed = pack([bags.features(row) for row in range(9)])
    logits = torch.cat([one.logits for one in found])
    module.eval()
    torch.testing.assert_close(logits, module.scored(packed).logits)
    torch.testing.assert_close(logits, module(packed).logits)
    assert not torch.allclose(logits, module.head(packed).logits)


@pytest.mark.filterwarnings("ignore")
def test_module_and_data_module_run_under_a_trainer_of_the_users_own(bags: BagDataset, tmp_path: Path) -> None:
    data = SlideDataModule(bags, ROWS, TASK, replace(QUICK, ema=0.5, clip=1.0, schedule="one-cycle", batch_size=2))
    trainer = _trainer(tmp_path)
    trainer.fit(data.module("mean"), datamodule=data)
    assert {"train_loss", "stop_loss", "lr"} <= set(trainer.callback_metrics)


@pytest.mark.filterwarnings("ignore")
def test_the_stopping_loss_is_that_of_all_stopping_bags_at_once(bags: BagDataset, tmp_path: Path) -> None:
    """Of one bag alone, or of any batch of them, the partial likelihood would be another."""
    rng = np.random.default_rng(0)
    truth = np.stack([rng.uniform(1, 9, 9), np.ones(9)], axis=1).astype(np.float32)
    task = Task((Cox("os/event"),))
    data = SlideDataModule(BagDataset(bags.sources, truth), ROWS, task, QUICK)
    module, trainer = data.module("mean"), _trainer(tmp_path)
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        logits = module.head.eval()(pack([bags.features(i) for i in ROWS.stop])).logits
    expected = task.criterion(torch.from_numpy(truth[6:])).losses(logits).mean()
    assert float(trainer.callback_metrics["stop_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert next(iter(data.train_dataloader())).rows.tolist() != [0]
    assert len(data.train_dataloader()) == 3


def test_a_step_has_several_bags_where_a_loss_compares_them_and_an_epoch_several_steps() -> None:
    cox = Task((TASK.targets[0], Cox("os/event")))
    assert [batch_size(cox, QUICK, n) for n in (1, 6, 12, 40, 128, 5000)] == [2, 2, 3, 10, 32, 32]
    assert batch_size(cox, replace(QUICK, batch_size=5), 40) == 5
    assert batch_size(TASK, QUICK, 40) == 1
    assert batch_size(TASK, replace(QUICK, batch_size=1), 40) == 1
    with pytest.raises(InputError, match="batch_size is 1, and a Cox model learns by comparing"):
        batch_size(cox, replace(QUICK, batch_size=1), 40)


def test_settings_that_can_do_nothing_are_said(
    bags: BagDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [Job(Rows(learn, []), QUICK, tmp_path / str(learn[0]), "fold", 1) for learn in ([0, 1, 2, 3], [2, 3, 4, 5])]
    for more, why in (
        ({"balanced_sampling": True}, "drawn by its own odds"),
        ({"batch_size": 2}, "a step takes several bags"),
    ):
        caplog.clear()
        settings = replace(QUICK, together="always", **more)  # type: ignore[arg-type]
        fit_all(bags, [job._replace(settings=settings) for job in jobs], TASK, "mean")
        (said,) = [line for line in caplog.messages if "--training.together always" in line]
        assert why in said
    caplog.set_level("INFO", "pathfm")
    bags.keep_on(None)
    keep_bags(bags, torch.device("meta"), replace(QUICK, keep="device", devices=2))
    assert bags.place == torch.device("cpu")
    assert "kept in memory, by each of 2 processes" in caplog.text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"schedule": "cosin"}, "is 'cosin'; it must be cosine or one-cycle or constant"),
        ({"precision": True}, "is True; it must be 32 or bf16 or 16"),
        ({"batch_size": 2.0}, "is 2.0; it must be a whole number or null"),
        ({"lr": "1e-3"}, "is '1e-3'; it must be a number"),
        ({"class_weights": 1}, "is 1; it must be true or false"),
        ({"loggers": "csv"}, "is 'csv'; it must be a list of csv or tensorboard"),
        ({"head_options": {"hidden": 64}}, "names hidden, an option of all heads; pass --training.hidden"),
    ],
)
def test_a_setting_of_another_type_is_refused_where_it_is_made(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"--training.{next(iter(more))} {says}"):
        replace(QUICK, **more)
    assert replace(QUICK, lr=1, clip=1, batch_size=None).lr == 1


@pytest.mark.filterwarnings("ignore")
def test_the_data_module_reads_what_train_would_learn_from(
    embeddings_cohort: Callable[..., EmbeddingsCohort], tmp_path: Path
) -> None:
    cohort = embeddings_cohort(patients=12, slides=2)
    data = SlideDataModule.read(cohort.table, [cohort.folder], "cancer", QUICK, unit="patient")
    assert len(data.bags) == 12
    assert len(data.rows.learn) + len(data.rows.stop) == 12
    assert len(data.rows.stop) >= 2
    trainer = _trainer(tmp_path)
    trainer.fit(data.module("mean"), datamodule=data)
    assert "stop_loss" in trainer.callback_metrics


def test_folds_of_one_seed_see_the_bags_they_share_in_one_order() -> None:
    one, other = EpochOrder(range(8), 12, seed=3), EpochOrder(range(2, 12), 12, seed=3)
    for epoch in range(3):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        assert sorted(one) == list(range(8))
        assert [row for row in one if row >= 2] == [row for row in other if row < 8]
    assert list(EpochOrder(range(8), 12, seed=3)) != list(one)


def test_balanced_sampling_draws_the_classes_equally_often_and_leaves_those_without_a_label_as_they_are() -> None:
    truth = np.array([[0]] * 12 + [[1]] * 3 + [[np.nan]] * 5, np.float32)
    odds = balanced_odds(TASK, truth)
    assert odds[:12].sum() == pytest.approx(odds[12:15].sum())
    assert odds[15:].sum() == pytest.approx(5 / 20)
    drawn = [row for epoch in range(200) for row in _epoch(EpochOrder(range(20), 20, 0, odds), epoch)]
    assert np.mean([row < 12 for row in drawn]) == pytest.approx(odds[:12].sum(), abs=0.02)


def test_drawing_stands_for_the_weights_of_the_first_target_in_training_alone(bags: BagDataset) -> None:
    truth = np.array([[i < 2, i < 3] for i in range(9)], np.float32)
    both = Task((Classes("one", ("0", "1")), Classes("two", ("0", "1"))))
    data = SlideDataModule(
        BagDataset(bags.sources, truth), Rows(range(9), []), both, replace(QUICK, balanced_sampling=True)
    )
    weighed = data.module("mean")
    expected = both.balance(truth)
    assert weighed.learning_balance[0] is None
    for found in (weighed.balance[0], weighed.balance[1], weighed.learning_balance[1]):
        assert found is not None
    assert [torch.equal(a, b) for a, b in zip(weighed.balance, expected, strict=True)] == [True, True]
    assert torch.equal(weighed.learning_balance[1], expected[1])


@pytest.mark.filterwarnings("ignore")
def test_a_bag_that_is_drawn_again_in_an_epoch_has_another_mask_and_other_instances(
    bags: BagDataset, tmp_path: Path
) -> None:
    seeds: list[int] = []
    rows: list[tuple[int, float]] = []

    class Watched(MILModule):
        def on_train_batch_end(self, outputs: object, batch: Batch, batch_index: int) -> None:
            seeds.append(torch.initial_seed())
            rows.append((int(batch.rows[0]), float(batch.bags.features.sum())))

    rare = BagDataset(bags.sources, np.array([[i == 8] for i in range(9)], np.float32))
    data = SlideDataModule(rare, Rows(range(9), []), TASK, replace(QUICK, balanced_sampling=True, bag_size=3))
    _trainer(tmp_path).fit(Watched(data.module("mean").head, TASK, data.settings), datamodule=data)
    assert len(set(seeds)) == len(seeds) == 9
    again = [total for row, total in rows if row == 8]
    assert len(set(again)) == len(again) > 1


def test_an_endless_trainer_is_told_that_one_cycle_has_an_end(bags: BagDataset, tmp_path: Path) -> None:
    data = SlideDataModule(bags, ROWS, TASK, replace(QUICK, schedule="one-cycle"))
    with pytest.raises(InputError, match=r"max_epochs=settings\.epochs"):
        _trainer(tmp_path, max_epochs=-1, max_steps=5).fit(data.module("mean"), datamodule=data)


def test_a_fit_on_the_cpu_leaves_the_accelerator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def woken(*_: object) -> int:
        pytest.fail("CUDA was asked for")

    monkeypatch.setattr("torch.cuda.device_count", woken)
    monkeypatch.setattr("torch.cuda.manual_seed_all", woken)
    with undisturbed(0, torch.device("cpu")):
        first = torch.rand(1)
    with undisturbed(0, torch.device("cpu")):
        assert torch.equal(torch.rand(1), first)


def test_the_loggers_of_a_fit_are_ended_whatever_becomes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr("pathfm.loggers.CSVLogger.finalize", lambda self, status: ended.append(status))
    settings = replace(QUICK, loggers=["csv"])
    with training_loggers(settings, tmp_path, "one"):
        pass
    with pytest.raises(KeyboardInterrupt), training_loggers(settings, tmp_path, "two"):
        raise KeyboardInterrupt
    assert ended == ["success", "failed"]


def _epoch(order: EpochOrder, epoch: int) -> list[int]:
    order.set_epoch(epoch)
    return list(order)


def test_processes_share_an_epoch_without_leaving_a_bag_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        shares.append(list(EpochOrder(range(7), 9, 0)))
    assert [len(share) for share in shares] == [4, 4]
    assert set(shares[0]) | set(shares[1]) == set(range(7))


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_the_rates_are_those_of_torchs_own_schedulers(schedule: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        "one-cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 20 + 1, pct_start=7 / 20),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }[schedule]()
    for step in range(20):
        if schedule != "one-cycle":
            assert rate(schedule, step / 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()
    if schedule == "one-cycle":
        assert [rate(schedule, 0), rate(schedule, 0.3), rate(schedule, 1)] == pytest.approx([1 / 25, 1, 1 / 250_000])
        assert rate(schedule, 0.65) == pytest.approx(0.5, abs=1e-5)


def test_the_running_mean_is_the_recursion_of_its_definition() -> None:
    head = build_head("mean", 3, 2, hidden=4)
    mean, expected = averaged(head, 0.9), None
    for _ in range(4):
        with torch.no_grad():
            for weight in head.parameters():
                weight += torch.rand_like(weight)
        mean.update_parameters(head)
        now = torch.cat([weight.flatten() for weight in head.parameters()]).detach()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    found = torch.cat([weight.flatten() for weight in mean.module.parameters()])
    torch.testing.assert_close(found, expected)


def test_the_fused_optimiser_steps_as_torchs_plain_one() -> None:
    drawn = torch.randn(50, generator=torch.Generator().manual_seed(0))
    ours, plain = (torch.nn.Parameter(drawn.clone()) for _ in range(2))
    optimizers = adamw([ours], QUICK), torch.optim.AdamW([plain], lr=1e-2, weight_decay=1e-5, foreach=False)
    for step in range(20):
        for parameter, optimizer in zip((ours, plain), optimizers, strict=True):
            parameter.grad = torch.sin(drawn * step)
            optimizer.step()
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_a_gradient_longer_than_the_settings_allow_is_shortened(bags: BagDataset, tmp_path: Path) -> None:
    lengths: list[float] = []

    class Watched(MILModule):
        def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
            grads = [weight.grad.norm() for weight in self.head.parameters() if weight.grad is not None]
            lengths.extend([float(torch.stack(grads).norm())] if grads else [])

    data = SlideDataModule(bags, ROWS, TASK, replace(QUICK, clip=0.01))
    watched = Watched(data.module("mean").head, TASK, data.settings)
    _trainer(tmp_path).fit(watched, datamodule=data)
    assert lengths == pytest.approx([0.01] * len(lengths), rel=1e-3)
    assert lengths


def test_bags_stay_in_memory_where_they_fill_at_most_half_of_what_is_free(
    bags: BagDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert free_bytes(cpu) > 0
    for free, place in ((2 * bags.size_bytes - 1, None), (2 * bags.size_bytes, cpu)):
        monkeypatch.setattr("pathfm.keeping.free_bytes", lambda device, free=free: free)
        bags.keep_on(None)
        keep_bags(bags, cpu, QUICK)
        assert bags.place == place
    keep_bags(bags, torch.device("meta"), QUICK)  # what they fill is not free: that is no reason to send them away
    assert bags.place == cpu
    keep_bags(bags, cpu, replace(QUICK, keep="disk"))
    assert bags.place is None
    keep_bags(bags, cpu, replace(QUICK, devices=2))  # each process would hold them
    assert bags.place is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_with_its_pip_line(
    bags: BagDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing(*args: object, **kwargs: object) -> Logger:
        raise ModuleNotFoundError(name)

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("pathfm.loggers.MLFlowLogger", missing)
    with pytest.raises(MissingExtraError, match=rf"pip install 'pathfm\[{name}\]'"):
        fit(bags, ROWS, TASK, "mean", replace(QUICK, loggers=[name]), tmp_path)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_gets_the_losses_and_writes_below_the_folder_where_no_server_is_named(
    bags: BagDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("sys.argv", ["pathfm", "--cohort", "/data/of-meyer.csv"])
    monkeypatch.setenv("LOGNAME", "dr-meyer")
    settings = replace(QUICK, loggers=[name])
    with training_loggers(settings, tmp_path / "other", "another fit, open at the same time"):
        fit(bags, ROWS, TASK, "mean", settings, tmp_path / "fit")
    for folder in ("other", "fit"):
        files = list((tmp_path / folder / "logs").rglob({"wandb": "*.wandb", "mlflow": "*.db"}[name]))
        (written,) = [path.read_bytes() for path in files]
        print(f"{name}: {len(files)} file in {folder}, {len(written)} bytes")
        assert (b"stop_loss" in written) == (folder == "fit")
        assert b"meyer" not in written
        assert b"torchmetrics" not in written


def test_the_first_of_each_row_is_kept_in_order() -> None:
    assert first_of_each([5, 3, 5, 2, 3]) == [0, 1, 3]
    assert first_of_each([]) == []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_two_processes_come_to_one_fit_which_goes_on_where_it_was(bags: BagDataset, tmp_path: Path) -> None:
    settings = replace(QUICK, devices=2, loggers=["csv"], ema=0.5, schedule="one-cycle")
    found = fit(bags, ROWS, TASK, "gated-abmil", settings, tmp_path)
    again = fit(bags, ROWS, TASK, "gated-abmil", settings, tmp_path)  # from its checkpoint: nothing is left to do
    print(f"2 processes, {found.epochs} epochs")
    assert found[2:] == again[2:]
    for name, value in found.head.state_dict().items():
        assert torch.equal(value, again.head.state_dict()[name]), name
    single = fit(bags, ROWS, TASK, "gated-abmil", replace(settings, devices=1), tmp_path / "single")
    first = next(iter(found.head.parameters()))
    assert not torch.equal(first, next(iter(single.head.parameters())))  # 2 bags a step, half as many steps


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_users_own_trainer_runs_two_processes_and_scores_every_stopping_bag_once(
    bags: BagDataset, tmp_path: Path
) -> None:
    data = SlideDataModule(bags, ROWS, TASK, QUICK)
    module, trainer = data.module("mean"), _trainer(tmp_path, devices=2, strategy="ddp_spawn")
    trainer.fit(module, datamodule=data)
    with torch.no_grad():
        logits = module.head.eval()(pack([bags.features(i) for i in ROWS.stop])).logits
    criterion = TASK.criterion(bags.truth[6:], module.balance)
    print(f"2 processes, stopping loss {float(trainer.callback_metrics['stop_loss'])}")
    assert float(trainer.callback_metrics["stop_loss"]) == pytest.approx(
        float(criterion.losses(logits).mean()), rel=1e-5
    )
