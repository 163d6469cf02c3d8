"""Towers of a Hugging Face text model: pairs, tuning, distilling, folders that can be moved."""

import itertools
import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast
from typer.testing import CliRunner

from encoder.recipe import TowerRecipe
from encoder.text import TextModel
from encoder.towers import MODEL, TowerError, load_tower, text_model
from schemas.events import BEHAVIOR_CODE, UNIFIED_EVENTS, encode_event
from schemas.items import UNIFIED_ITEMS, ItemVector, encode_item_vector
from schemas.mapping import Mapper, Rejected
from streams.commands.training import job
from streams.core.errors import SettingsError
from streams.core.settings import Settings
from testkit.training_logs import ITEMS, everything, made_log
from tests.training.test_sources import PLAIN, START, run
from training.__main__ import app, read
from training.distill import distil
from training.job import Job
from training.log import EventLog
from training.pairs import FEWEST, Pairs, event_pairs, pairs, steps
from training.splits import DataError, by_time, leave_one_out
from training.tower import build, make, show, worth
from training.tune import adapt, merge, step_loss, tune
from training.whiten import fit_on, source_of, write

A = "red green blue wooden steel small large old".split()
B = "lamp tent grinder guitar lens kettle novel racket".split()
TEXTS = ["", *(f"{a} {b} number {n % 7}" for n, (a, b) in enumerate(itertools.islice(itertools.product(A, B), ITEMS)))]
QUICK = TowerRecipe(dims=16, steps=3, batch=12, rank=2, max_tokens=16, precision="no", threads=1)


def save_tokenizer(folder: Path) -> None:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(WordPiece({w: n for n, w in enumerate([*marks, *A, *B, "number", *"0123456"])}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


@pytest.fixture(scope="module", params=["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random text model of each family."""
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random text model that reads single tokens: a static tower is made of such a one."""
    return saved("bert", tmp_path_factory.mktemp("bert"))


def saved(family: str, folder: Path) -> Path:
    """A small random text model with its tokenizer."""
    torch.manual_seed(1)
    if family == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        model: torch.nn.Module = BertModel(BertConfig(**sizes, vocab_size=40, max_position_embeddings=32))
    else:
        model = GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=32))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@given(st.integers(0, 1000), st.integers(1, 5), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_pairs(seed: int, ahead: int, ties: bool, timed: bool) -> None:
    """Both events of a pair are trained on, of one user, in order, and near; no hidden item, none without text; and no pair is forgotten."""
    log = made_log(40, seed, ties)
    try:
        split = by_time(log, 0.2, 0.2) if timed else leave_one_out(log)
    except DataError:  # too few by chance, all at one time
        return
    usable = np.random.default_rng(seed).random(log.catalogue.size) < 0.8
    a, b = event_pairs(log, split, ahead, usable)
    held_out = np.concatenate([split.valid.target, split.test.target])
    trained = split.trained(len(log.rows))
    assert not np.isin(np.concatenate([a, b]), held_out).any()
    assert (trained[a] & trained[b]).all()
    if timed and len(split.valid):
        assert log.rows["ts_ms"][b].max(initial=0) < log.rows["ts_ms"][split.valid.target].min()

    def pair(i: int, j: int) -> bool:
        ts, behavior, items = log.rows["ts_ms"], log.rows["behavior"], log.items
        return bool(
            trained[i] and trained[j] and usable[items[i]] and usable[items[j]] and items[i] != items[j] and ts[i] < ts[j]
            and BEHAVIOR_CODE["hide"] not in (behavior[i], behavior[j])
        )  # fmt: skip

    wanted = {
        (i, j) for x, y in itertools.pairwise(log.bounds.tolist()) for i in range(x, y) for j in range(i + 1, min(i + ahead + 1, y)) if pair(i, j)
    }
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == wanted


def made_pairs() -> tuple[EventLog, Pairs]:
    log = made_log()
    return log, pairs(log, leave_one_out(log), 3, TEXTS)


def test_hidden_items() -> None:
    """What a user hid is in no pair."""
    log = made_log()
    rows = log.rows.copy()
    rows["behavior"] = BEHAVIOR_CODE["hide"]
    with pytest.raises(DataError, match=rf"too few events: 0 pairs .* want at least {FEWEST}"):
        pairs(replace(log, rows=rows), everything(log), 3, TEXTS)


@pytest.mark.parametrize("logq", [True, False])
def test_loss_by_hand(logq: bool) -> None:
    """A step's loss is the formula of training.tune, both ways."""
    log, data = made_pairs()
    which = np.random.default_rng(0).integers(0, len(data), 12)
    vectors = torch.nn.functional.normalize(torch.randn(log.catalogue.size, 8, generator=torch.manual_seed(0)), dim=1)
    x, y = data.first[which], data.second[which]
    recipe = QUICK.model_copy(update={"logq": logq})
    needed, at = np.unique(np.concatenate([x, y]), return_inverse=True)
    loss = step_loss(vectors[needed], at[:12], at[12:], data, which, recipe)
    z, platform, terms = vectors.double().numpy(), log.catalogue.platform, []
    for given_, found, of in ((x, y, data.second), (y, x, data.first)):
        for i in range(12):
            positive, negatives = np.exp(z[given_[i]] @ z[found[i]] / 0.05), 0.0
            for j in range(12):
                if found[j] not in (given_[i], found[i]) and platform[found[j]] == platform[found[i]]:
                    expected = 11 * (of == found[j]).mean() if logq else 1.0
                    negatives += np.exp(z[given_[i]] @ z[found[j]] / 0.05) / expected
            terms.append(-np.log(positive / (positive + negatives)))
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-4)
    assert len(steps(data, which, False, logq)) == 1


def test_embedding(source: Path) -> None:
    """Texts of any length and order get the vector that they get alone; training pools as the tower does; a text without tokens is zero."""
    model = TextModel(str(source), 16)
    texts = ["red lamp", "small old wooden guitar number 3", "lens", "red lamp " * 20]
    together = model.embed(texts * 20)
    for text, vector in zip(texts, together, strict=False):
        np.testing.assert_allclose(model.embed([text])[0], vector, atol=1e-5)
    np.testing.assert_allclose(model.pool(model.ids(texts)).detach().numpy(), together[:4], atol=1e-5)
    assert max(map(len, model.ids(texts))) == 16
    assert not model.pool([[], []]).any()
    assert model.embed([]).shape == (0, 32)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_tune(source: Path, mode: str) -> None:
    """Tuning changes the vectors, is the same again with the same seed, and leaves a plain model without adapters."""
    _, data = made_pairs()
    recipe = QUICK.model_copy(update={"mode": mode, "steps": 12, "lr": 1e-3})
    runs = []
    for _ in range(2):
        model = TextModel(str(source), 16)
        before, told = model.embed(TEXTS), list[str]()
        losses = tune(model, TEXTS, data, recipe, told.append)
        assert np.isfinite(losses).all()
        assert len(losses) == 12
        assert not any("lora" in name for name, _ in model.body.named_parameters())
        runs.append(model.embed(TEXTS))
        assert np.abs(runs[-1] - before)[1:].max() > 1e-3
        assert not any(p.requires_grad for p in model.body.parameters())
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)
    few, all_ = (int(n.replace(",", "")) for n in told[0].split(" weights")[0].split(" of "))
    assert few < all_ / 4 if mode == "lora" else few > all_ / 2


def test_merged(source: Path) -> None:
    """Merged weights give the vectors that the adapters gave."""
    model = TextModel(str(source), 16)
    plain = model.embed(TEXTS[1:])
    adapt(model, QUICK)
    for name, parameter in model.body.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = model.embed(TEXTS[1:])
    merge(model, QUICK)
    merged = model.embed(TEXTS[1:])
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(merged, adapted, atol=1e-4)


def alike(vectors: np.ndarray) -> float:
    """Share of an item's five nearest that are of its taste."""
    taste = np.arange(ITEMS) % 4 // 2
    cosines = vectors[1:] @ vectors[1:].T
    np.fill_diagonal(cosines, -1)
    return float((taste[np.argsort(-cosines, 1)[:, :5]] == taste[:, None]).mean())


def test_learns(tmp_path: Path) -> None:
    """On users who keep to items of a taste, a tuned tower puts those together and finds the next item more often than the frozen one."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**sizes, vocab_size=40, max_position_embeddings=32)).save_pretrained(tmp_path / "tiny")
    save_tokenizer(tmp_path / "tiny")
    log = made_log(300)
    half = A[:4], A[4:]  # items 4n + 1, 4n + 2 are one taste's, the others the other's: four words say which, among others that do not
    texts = ["", *(f"{half[n % 4 // 2][n // 4 % 4]} {B[n * 5 % 8]} {B[n * 3 % 7]} number {n % 7}" for n in range(ITEMS))]
    split = leave_one_out(log)
    near, hits = {}, {}
    for mode in ("frozen", "full"):
        change = {"mode": mode, "steps": 60, "batch": 64, "lr": 3e-3, "model": str(tmp_path / "tiny"), "temperature": 0.3, "dims": 8}
        vectors = build(QUICK.model_copy(update=change), log, texts, split, tmp_path / mode, True, lambda line: None, None)
        assert vectors is not None
        np.testing.assert_allclose(load_tower(str(tmp_path / mode)).encode(texts), vectors, atol=1e-4)
        near[mode], hits[mode] = alike(vectors), worth(log, vectors, split)["all"]["hr@10"]["mean"]
    assert near["full"] > near["frozen"] + 0.1
    assert hits["full"] > hits["frozen"]


def made_tower(source: Path, out: Path) -> None:
    model = text_model(source_of(str(source)), 16)
    write(model, fit_on(model, TEXTS, 16, 0), out, "test")


def test_relocatable(source: Path, tmp_path: Path) -> None:
    """A tower's folder holds its model: moved elsewhere, with the model that it was made of gone, it gives the same vectors."""
    shutil.copytree(source, tmp_path / "source")
    made_tower(tmp_path / "source", tmp_path / "a")
    before = load_tower(str(tmp_path / "a"))
    vectors = before.encode(TEXTS)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "a").rename(tmp_path / "b")
    after = load_tower(str(tmp_path / "b"))
    np.testing.assert_array_equal(after.encode(TEXTS), vectors)
    assert after.space_id == before.space_id
    assert after.space_id.startswith("hf-16-")
    assert not vectors[0].any()
    assert str(tmp_path) not in (tmp_path / "b" / "tower.json").read_text()


def test_distilled(bert: Path, tmp_path: Path) -> None:
    """A model's folder, or a tower's, is distilled into a static tower on any texts; the distilled tower has no model to distil again."""
    made_tower(bert, tmp_path / "tower")
    for name, model in (("of-model", bert), ("of-tower", tmp_path / "tower")):
        distil(TEXTS[1:], 16, tmp_path / name, str(model))
    ours, same = (load_tower(str(tmp_path / n)) for n in ("of-model", "of-tower"))
    vectors = ours.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors[1:], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(same.encode(TEXTS), vectors, atol=1e-5)
    manifest = json.loads((tmp_path / "of-tower" / "tower.json").read_text())
    assert manifest["dims"] == 16
    assert "licence" not in manifest
    assert str(tmp_path) not in (tmp_path / "of-tower" / "tower.json").read_text()
    with pytest.raises(TowerError, match="without a text model of its own"):
        distil(TEXTS[1:], 16, tmp_path / "again", str(tmp_path / "of-tower"))


def test_refused(source: Path, tmp_path: Path) -> None:
    """Too few texts, more dims than the model has, a folder that exists, a folder without a model: each is one clear line, and nothing is left."""
    model = TextModel(str(source), 16)
    with pytest.raises(TowerError, match="too few texts: whitening to 16 dims wants at least 32, got 20"):
        fit_on(model, TEXTS[:21], 16, 0)
    with pytest.raises(TowerError, match="dims = 33: the model has 32"):
        fit_on(model, TEXTS * 2, 33, 0)
    with pytest.raises(TowerError, match="too few texts"):
        distil(TEXTS[1:], 64, tmp_path / "x", str(source))
    with pytest.raises(TowerError, match="no text model that can be read"):
        text_model(str(tmp_path), 16)
    with pytest.raises(TowerError, match="cannot be distilled"):
        distil(TEXTS[1:], 16, tmp_path / "x", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    made_tower(source, tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [MODEL, "tower.json", "whitening.npz"]
    with pytest.raises(TowerError, match="a: exists; choose another folder"):
        made_tower(source, tmp_path / "a")
    (tmp_path / "a" / "whitening.npz").write_bytes(b"cut")
    with pytest.raises(TowerError, match=str(tmp_path / "a")):
        load_tower(str(tmp_path / "a"))


def write_data(folder: Path, items: int = ITEMS, events: int = 600, users: int = 30) -> Path:
    """Files of a platform whose users act on items of one kind."""
    r = np.random.default_rng(0)
    lines = [{"id": f"i{n}", "title": TEXTS[n + 1]} for n in range(items)]
    chosen = [(2 * int(r.integers(items)) + n % 2) % items for n in range(events)]
    acts = [
        {"account": f"u{n % users}", "item": f"i{item}", "behavior": "view", "time": START + 1000 * n, "id": str(n)} for n, item in enumerate(chosen)
    ]
    folder.mkdir()
    for what, rows in (("items", lines), ("events", acts)):
        (folder / f"shop.{what}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("mode", ["frozen", "lora"])
def test_make(source: Path, tmp_path: Path, mode: str) -> None:
    """Of a folder of events and items comes a tower that the settings can name, with its hit rates beside the shipped tower's."""
    makes(source, tmp_path, mode)


def test_make_static(bert: Path, tmp_path: Path) -> None:
    """A static tower is made of the catalogue's own texts, and shown beside the shipped one."""
    makes(bert, tmp_path, "static")


def makes(source: Path, tmp_path: Path, mode: str) -> None:
    recipe = QUICK.model_copy(update={"mode": mode, "model": str(source)})
    job = Job(data=write_data(tmp_path / "data"), platforms=(PLAIN,), tower_recipe=recipe)
    out, told = tmp_path / "towers" / "mine", list[str]()
    found = make(job, out, True, told.append, Console(file=StringIO()))
    assert "600 events of 30 users on 60 items" in told[0]
    tower = load_tower(str(out))
    assert (found["space_id"], found["dims"]) == (tower.space_id, 16)
    assert set(found["models"]) == {"static, shipped", str(out)}
    assert found["models"][str(out)]["all"]["cases"] == found["models"]["static, shipped"]["all"]["cases"] >= 20
    shown = Console(file=StringIO(), width=200)
    show(found, shown)
    assert "decayed mean, platform shop" in shown.file.getvalue()  # type: ignore[attr-defined]
    log, texts = job.texts(told.append)
    assert [texts[r] for r in log.items[:50]] == [TEXTS[1 + int(log.catalogue.names[r].removeprefix("shop:i"))] for r in log.items[:50]]
    with pytest.raises(TowerError, match="exists; choose another folder"):
        make(job, out, False, told.append, None)


@pytest.mark.parametrize(
    ("events", "users", "items", "change", "says"),
    [
        (40, 30, ITEMS, {}, "too few events: .* want at least 20"),
        (220, 100, ITEMS, {"ahead": 1}, "too few events: .* pairs of a user's training events within 1 events"),
        (600, 30, 20, {}, "too few texts: whitening to 16 dims wants at least 32, got 20"),
        (600, 30, ITEMS, {"model": "no/such-folder/model"}, "'no/such-folder/model': no text model that can be read"),
        (600, 30, ITEMS, {"lr": 1e30}, "loss is .* at step .*: a lower lr"),
    ],
    ids=["events", "pairs", "texts", "model", "lr"],
)
def test_make_refuses(source: Path, tmp_path: Path, events: int, users: int, items: int, change: dict[str, object], says: str) -> None:
    """Too little of anything, a model that is none, or a loss that explodes: one clear line, and no folder."""
    recipe = QUICK.model_copy(update={"model": str(source), **change})
    job = Job(data=write_data(tmp_path / "data", items, events, users), platforms=(PLAIN,), tower_recipe=recipe)
    with pytest.raises((DataError, TowerError), match=says):
        make(job, tmp_path / "t", True, lambda line: None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_topic(tmp_path: Path) -> None:
    """Of the unified topic the texts are title and categories, whatever space the vectors are of."""
    event = Mapper(PLAIN, 0, 0).events(b'{"account": "u", "item": "1", "behavior": "view", "time": 1700000000000, "id": "1"}', "t", 0, 0, 10**14)
    assert not isinstance(event, Rejected)
    (tmp_path / UNIFIED_EVENTS).write_bytes(encode_event(event[0]))
    row = ItemVector("shop:1", "Green tea", ("Food", "Tea"), "another", 2, b"\0" * 4, 0)
    (tmp_path / UNIFIED_ITEMS).write_bytes(encode_item_vector(row))
    log, texts = Job(data=tmp_path, platforms=(PLAIN,)).texts(lambda line: None)
    assert texts == ["", "Green tea Food, Tea"]
    assert log.items.tolist() == [1]
    assert log.with_vectors(np.eye(2, 3, dtype=np.float32)).catalogue.table.vectors[1].tolist() == [0, 1, 0]


def test_command(bert: Path, tmp_path: Path) -> None:
    """The training process makes a tower of a job file, then a static one of it; a --set is the tower's where it has such a key, else training's."""
    data, shop = write_data(tmp_path / "d"), Settings(platforms=(PLAIN,))
    for mode, model, more in (("lora", bert, []), ("static", tmp_path / "lora", ["--no-figures"])):
        given = QUICK.model_dump(mode="json") | {"mode": mode, "model": str(model)}
        with job(shop, str(data), ["batch=8", "test_share=0.2"], {}, given) as file:
            told = Job.model_validate_json(file.read_bytes())
            done = CliRunner().invoke(app, ["tower", str(file), "--out", str(tmp_path / mode), *more])
        assert (told.tower_recipe.batch, told.recipe.test_share) == (8, 0.2)
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["space_id"] == load_tower(str(tmp_path / mode)).space_id
        assert ("decayed mean, all" in done.stderr) == (mode == "lora")
    with pytest.raises(SettingsError, match="--set speed=1: want key=value with one of mode, model"), job(shop, "d", ["speed=1"], {}, given):
        pass
    with pytest.raises(DataError, match=r"tower_recipe\.mode = 'warm': Input should be"), job(shop, "d", ["mode=warm"], {}, given) as file:
        read(file)


@pytest.mark.slow
def test_process(bert: Path, tmp_path: Path) -> None:
    """`currents tower` ends with a line of JSON; a mistake is one line."""
    write_data(tmp_path / "d")
    platform = '[[platforms]]\nname = "shop"\ncode = 1\npreset = "plain"\nshared_ids = true\ntopic = "t"\nitems_topic = "i"\n'
    (tmp_path / "currents.toml").write_text(platform)
    quick = ["--dims", "16", "--model", str(bert), "--steps", "2", "--set", "batch=8"]
    done = run("tower", "d", "--out", "lora", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tower"] == "lora"
    assert "decayed mean, all" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("tower", "d", "--out", "lora", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "currents: lora: exists; choose another folder\n")
