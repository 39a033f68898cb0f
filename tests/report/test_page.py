import json
import re
from html.parser import HTMLParser

import browser
import pytest
import yaml

from fl_lightning.errors import InputError
from fl_lightning.report import page as page_module
from fl_lightning.report.drawing import RenderedPicture
from fl_lightning.report.page import breakable, write_report
from fl_lightning.report.samples import adapter_digests

EVIL = "<img src=x onerror='document.title=`hit`'>"
CLOSING = '"></code></pre></style></script></textarea><script>document.title="hit"</script>'


class Page(HTMLParser):
    """Elements with their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def poison(folder):
    """Put markup wherever a run folder has text."""
    (folder / "config.yaml").write_text(f"seed: 1\nfederation: {{rounds: 2}}\n# {EVIL} {CLOSING}\n")
    for path in [*folder.glob("*.json"), *folder.glob("cluster_metadata/*.json"), folder / "metrics.csv"]:
        text = path.read_text()
        quoted = json.dumps(EVIL)[1:-1] if path.suffix == ".json" else EVIL
        path.write_text(
            text.replace("finance", quoted).replace("kmeans", quoted).replace("elbow", json.dumps(CLOSING)[1:-1])
        )
    answer = {"client": EVIL, "prompt": CLOSING, "reference": EVIL, "base": EVIL, "adapter": CLOSING}
    (folder / "report").mkdir()
    kept = {"samples": 3, "adapters": adapter_digests(folder), "departments": {EVIL: [answer]}}
    (folder / "report" / "samples.json").write_text(json.dumps(kept))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def poisoned(root, build_run):
    """The page of a run that is full of markup."""
    left_out = [(2, "finance", "a", f"{EVIL} {CLOSING}")]
    folder = build_run(root, {"finance": ["a", "b"], "hr": ["c"]}, rounds=2, left_out=left_out, name="<b>evil")
    poison(folder)
    return write_report(folder, count=3)


@pytest.fixture(scope="module")
def large(root, build_run):
    """The page of a run with 12 departments and 40 clients that was interrupted."""
    departments = {f"department_{i}": [f"client_{c}" for c in range(4 if i < 4 else 3)] for i in range(12)}
    return write_report(build_run(root, departments, rounds=4, planned=9, name="large"), count=0)


@pytest.mark.slow
def test_text_of_a_run_stays_text(poisoned):
    page = Page(poisoned.read_text())
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not page.all("iframe", "object", "embed", "form", "base", "b", "textarea")
    words = "".join(page.words)
    assert words.count(EVIL) > 10
    assert words.count(CLOSING) >= 4
    assert "<b>evil" in words


@pytest.mark.slow
@pytest.mark.parametrize("which", ["poisoned", "large"])
def test_page_can_be_read_by_a_machine(which, request):
    page = Page(request.getfixturevalue(which).read_text())
    for landmark in ("h1", "header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1, landmark
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for attributes in page.all("a")]
    assert set(links) <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)
    assert {a["for"] for _, a in page.elements if "for" in a} <= set(ids)
    pictures = page.all("img")
    assert len(pictures) >= 7
    assert all(len(picture["alt"]) > 20 for picture in pictures)
    assert len(page.all("figure")) == len(pictures) <= len(page.all("details"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


@pytest.mark.slow
def test_pictures_lie_beside_the_page(large):
    names = sorted(path.name for path in large.parent.glob("*.png"))
    assert names == [
        "bytes.png", "choice.png", "clusters.png", "comparison.png", "losses.png", "map.png", "mean_loss.png",
        "seconds.png", "similarity.png",
    ]  # fmt: skip
    assert not list(large.parent.glob(".*"))


def test_page_of_a_run_that_has_only_begun(root, build_run):
    folder = root / "begun"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"federation": {"rounds": 3}}))
    text = write_report(folder).read_text()
    assert "No round of this run is finished yet" in text
    assert "federated_eval.json is missing" in text
    assert not Page(text).all("img", "input")


def test_one_round_needs_no_slider(root, build_run, monkeypatch):
    monkeypatch.setattr(page_module, "render_picture", lambda picture, _: RenderedPicture(picture, "data:,", "data:,"))
    folder = build_run(root, {"finance": ["a"], "hr": ["c"]}, rounds=1, name="short")
    page = Page(write_report(folder, count=0).read_text())
    assert not page.all("input")
    assert len([a for a in page.all("table") if a.get("class") == "heat"]) == 1


def test_report_folder_that_leads_elsewhere_is_refused(root, build_run, tmp_path):
    folder = build_run(root, {"hr": ["c"]}, rounds=1, name="linked")
    (folder / "report").symlink_to(tmp_path)
    with pytest.raises(InputError, match="got a link or a file"):
        write_report(folder, count=0)
    assert list(tmp_path.iterdir()) == []


def test_names_break_behind_underscores_and_are_escaped():
    assert breakable("a_<i>_b") == "a_<wbr>&lt;i&gt;_<wbr>b"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.find() is None:
        pytest.skip(f"no browser on the path (looked for {', '.join(browser.NAMES)})")
    tab = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["poisoned", "large"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_browser_has_nothing_to_complain_of(tab, which, width, dark, request):
    page = request.getfixturevalue(which)
    tab.open(page, width=width, dark=dark)
    assert tab.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.complaints() == []
    assert tab.requests() == [page.resolve().as_uri()]
    assert tab.value("document.title") != "hit"
    assert tab.value("document.documentElement.scrollWidth") <= width
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    shown = tab.value("document.images[0].currentSrc")
    assert shown == tab.value(f"document.images[0].{'previousElementSibling.srcset' if dark else 'src'}")


@pytest.mark.slow
def test_pages_own_policy_stops_scripts_and_requests(tab, poisoned):
    tab.open(poisoned)
    tab.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    tab.value(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title=2'}))"
    )
    assert tab.value("document.title").startswith("<b>evil")
    assert tab.complaints() != []  # so the test above would have seen it


@pytest.mark.slow
def test_slider_is_moved_by_keys(tab, large):
    tab.open(large)
    focused = "document.activeElement"
    for _ in range(60):
        tab.press("Tab")
        outline = tab.value(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none", tab.value(f"{focused}.outerHTML.slice(0, 200)")
        if tab.value(f"{focused}.type") == "range":
            break
    else:
        pytest.fail("the slider is not reached by Tab")

    def state():
        return tab.value(
            "[document.querySelector('output').textContent, document.activeElement.getAttribute('aria-valuetext'), "
            "[...document.querySelectorAll('.frame')].filter(f => f.offsetHeight > 0).map(f => f.dataset.label).join()]"
        )

    assert state() == ["round 4"] * 3
    for key, label in (("ArrowLeft", "round 3"), ("Home", "round 1"), ("ArrowRight", "round 2"), ("End", "round 4")):
        tab.press(key)
        assert state() == [label] * 3
    assert tab.value("document.activeElement.labels[0].textContent") == "Round"
