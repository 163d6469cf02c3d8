"""Runs in the environment of RecTools: `python -m benchmarks.peers.rectools_models FOLDER MODEL` trains one of its models on FOLDER/split.npz.

Writes FOLDER/MODEL.npz (format: benchmarks/peers/exchange.py) and MODEL.json: the course of training, the time, and three checks.
From this project the script imports only training.metrics, which needs numpy only.
"""

import copy
import itertools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MRR, NDCG, HitRate
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F

from training.metrics import METRICS, TOP, ranked

LOGITS = 1 << 22
CHUNK = 256


class Lean(TransformerLightningModule):
    """RecTools' training without the logits of padding, which its loss ignores. With them, training on 36,000 items exceeds time and memory."""

    def loss_of(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean cross-entropy over all items at the positions with a target."""
        items = self.torch_model.item_model.get_all_embeddings()
        there = batch["y"] != 0
        hidden = self.torch_model.encode_sessions(batch, items)[there]
        if self.torch_model.similarity_module.distance.value == "cosine":
            hidden, items = F.normalize(hidden, dim=-1), F.normalize(items, dim=-1)
        options = LinearCrossEntropyOptions(batch_chunk_size=max(1, LOGITS // len(items)))
        return F.linear_cross_entropy(hidden / self.logits_t, items, batch["y"][there], options=options)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Train on a batch as RecTools does."""
        loss = self.loss_of(batch)
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True)
        return loss


class Held:
    """Owns the held-out cases of split.npz."""

    def __init__(self, data: dict[str, np.ndarray], name: str) -> None:
        self.target = data[f"{name}_target"]
        bounds = np.searchsorted(data[f"{name}_case"], np.arange(len(self.target) + 1))
        self.inputs = [data[f"{name}_item"][a:b] for a, b in itertools.pairwise(bounds)]
        self.platform = data["platform"]

    def rank(self, users: np.ndarray, items: np.ndarray, known: np.ndarray, keep_target: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks and top lists by the policy of training.evaluate. Without `keep_target`: by RecTools' policy, without all seen items."""
        ranks, tops = [], []
        for a in range(0, len(users), CHUNK):
            target = self.target[a : a + CHUNK]
            allowed = self.platform[None] == self.platform[target][:, None]
            for i, seen in enumerate(self.inputs[a : a + CHUNK]):
                allowed[i, seen] = False
            if keep_target:
                allowed[np.arange(len(target)), target] = True
            else:
                allowed &= known
            found = ranked(np.where(known, users[a : a + CHUNK] @ items.T, -1e30), target, allowed)
            ranks.append(found[0])
            tops.append(found[1])
        return np.concatenate(ranks), np.concatenate(tops)


def vectors(module: LightningModule, held: Held, max_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users (cases, D), items (N, D) and known items (N,) bool, by catalogue row. Builds the inputs as RecTools' `recommend` does."""
    prepared, net = module.data_preparator, module.torch_model
    known, internal = prepared.get_known_item_ids().astype(int), prepared.get_known_items_sorted_internal_ids()
    internal_of = np.zeros(len(held.platform), np.int64)
    internal_of[known] = internal
    x = np.zeros((len(held.inputs), max_len), np.int64)
    for i, seen in enumerate(held.inputs):
        mine = internal_of[seen]
        mine = mine[mine > 0][-max_len:]
        x[i, max_len - len(mine) :] = mine
    cosine = net.similarity_module.distance.value == "cosine"
    module.eval()
    with torch.no_grad():
        embedded = net.item_model.get_all_embeddings()
        batches = [net.encode_sessions({"x": torch.from_numpy(x[a : a + CHUNK])}, embedded)[:, -1] for a in range(0, len(x), CHUNK)]
        users, rows = torch.cat(batches), embedded[internal_of] * (torch.from_numpy(internal_of) > 0)[:, None]
        if cosine:
            users, rows = F.normalize(users, dim=-1), F.normalize(rows, dim=-1)
    module.train()
    return users.numpy(), rows.numpy(), internal_of > 0


class Watch(Callback):
    """Owns early stopping: validation NDCG@10 after every epoch, the best weights, and a stop after `patience` epochs without improvement."""

    def __init__(self, valid: Held, max_len: int, patience: int, name: str) -> None:
        self.valid, self.max_len, self.patience, self.name = valid, max_len, patience, name
        self.history: list[dict[str, float]] = []
        self.best: Any = None

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Rank the validation cases."""
        found, _ = self.valid.rank(*vectors(module, self.valid, self.max_len))
        row = {"loss": float(trainer.callback_metrics["train_loss"]), **{f"valid_{m}": float(METRICS[m](found).mean()) for m in ("ndcg@10", "hr@10")}}
        self.history.append(row)
        print(f"{self.name}, epoch {len(self.history)}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()), file=sys.stderr, flush=True)
        seen = [r["valid_ndcg@10"] for r in self.history]
        if row["valid_ndcg@10"] == max(seen):
            self.best = copy.deepcopy(module.state_dict())
        trainer.should_stop = len(seen) - 1 - int(np.argmax(seen)) >= self.patience


def model_of(name: str, plan: dict[str, Any], watch: Watch) -> Any:
    """Return RecTools' model with this class name."""

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=plan["epochs"],
            accelerator="cpu",
            callbacks=[watch],
            deterministic=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )

    shared = {
        "n_blocks": plan["blocks"],
        "n_heads": plan["heads"],
        "n_factors": plan["dims"],
        "dropout_rate": plan["dropout"],
        "session_max_len": plan["max_len"],
        "batch_size": plan["batch_users"],
        "lr": plan["lr"],
        "loss": "softmax",
        "lightning_module_type": Lean,
        "get_trainer_func": trainer,
        "recommend_torch_device": "cpu",
    }
    if name == "SASRecModel":
        return SASRecModel(**shared)
    # The temperature of the paper's code; these logs have an order but no times, so the bias on time is off.
    return HSTUModel(**shared, relative_time_attention=False, lightning_module_kwargs={"logits_t": 0.05})


def interactions(user: np.ndarray, item: np.ndarray) -> Dataset:
    """Ordered events -> RecTools' data set."""
    at = pd.to_datetime(np.arange(len(user)), unit="s")
    return Dataset.construct(pd.DataFrame({Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: at}))


def checks(model: Any, data: dict[str, np.ndarray], test: Held, found: tuple[np.ndarray, ...], rank: np.ndarray, top: np.ndarray) -> dict[str, Any]:
    """Check that this script's use of RecTools changes no result, and that Currents' metrics equal RecTools' metrics."""
    module = model.lightning_model.eval()
    sample = model.data_preparator._collate_fn_train([model.data_preparator.get_dataloader_train().dataset[i] for i in range(8)])
    with torch.no_grad():
        stock = float(module._calc_softmax_loss(module.get_batch_logits(sample), sample["y"], sample["yw"]))
    lean = float(module.loss_of(sample).detach())
    inputs = interactions(data["test_case"], data["test_item"])
    _, ours = test.rank(*found, keep_target=False)
    same, platform_of = [], test.platform[test.target]
    for code in np.unique(platform_of):
        cases = np.flatnonzero(platform_of == code)
        cases = cases[np.isin(cases, inputs.user_id_map.external_ids)]
        mine = np.flatnonzero(found[2] & (test.platform == code))
        theirs = model.recommend(users=cases, dataset=inputs, k=10, filter_viewed=True, items_to_recommend=mine, on_unsupported_targets="ignore")
        for case, items in theirs.groupby(Columns.User, sort=False)[Columns.Item]:
            same.append(set(items) == set(ours[case, :10]))
    case, place = np.nonzero(top >= 0)
    reco = pd.DataFrame({Columns.User: case, Columns.Item: top[case, place], Columns.Rank: place + 1})
    wanted = pd.DataFrame({Columns.User: np.arange(len(rank)), Columns.Item: test.target})
    pairs = {
        "hr@10": (HitRate(k=10).calc(reco, wanted), METRICS["hr@10"](rank).mean()),
        "ndcg@10": (NDCG(k=10, divide_by_achievable=True).calc(reco, wanted), METRICS["ndcg@10"](rank).mean()),
        f"mrr@{TOP}": (MRR(k=TOP).calc(reco, wanted), np.where(rank <= TOP, 1 / rank, 0).mean()),
    }
    metrics = {name: {"rectools": float(a), "ours": float(b)} for name, (a, b) in pairs.items()}
    return {
        "loss of eight users": {"rectools": stock, "without padding": lean},
        "cases with the top ten of recommend()": float(np.mean(same)),
        "metrics": metrics,
        "passed": bool(
            abs(stock - lean) < 1e-4 * stock and np.mean(same) > 0.99 and all(abs(m["rectools"] - m["ours"]) < 1e-9 for m in metrics.values())
        ),
    }


def main() -> None:
    """Train, export, check."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    warnings.filterwarnings("ignore")
    plan = json.loads((folder / "plan.json").read_text())
    data = dict(np.load(folder / "split.npz"))  # a dict, because an npz file reads an array at every access
    torch.set_num_threads(plan["threads"])
    seed_everything(plan["seed"])
    model = model_of(name, plan, Watch(Held(data, "valid"), plan["max_len"], plan["patience"], f"RecTools {name}"))
    train, test = interactions(data["user"], data["item"]), Held(data, "test")
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(train)
    spent = {"cpu_s": round(time.process_time() - cpu), "wall_s": round(time.perf_counter() - wall)}
    watch = next(c for c in model.fit_trainer.callbacks if isinstance(c, Watch))
    model.lightning_model.load_state_dict(watch.best)
    found = vectors(model.lightning_model, test, plan["max_len"])
    np.savez(folder / f"{name}.npz", users=found[0], items=found[1], known=found[2])
    told = {**spent, "history": watch.history, "checks": checks(model, data, test, found, *test.rank(*found))}
    (folder / f"{name}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
