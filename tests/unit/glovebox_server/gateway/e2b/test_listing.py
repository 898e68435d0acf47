import datetime as dt
from urllib import parse

import hypothesis
import pydantic
import pytest
from hypothesis import strategies as st

from glovebox import errors
from glovebox_server.gateway.e2b import listing, models
from tests.support import manager_fakes


@hypothesis.given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=1, max_size=5))
def test_metadata_round_trip(wanted):
    wanted = {
        key.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode()
        for key, value in wanted.items()
    }
    # As the SDK does: each part encoded, joined as a query string (which encodes again); the third time is the framework's.
    text = parse.urlencode({parse.quote(key): parse.quote(value) for key, value in wanted.items()})
    assert listing.metadata(text) == wanted


def test_metadata_as_captured():
    assert listing.metadata(parse.unquote("a%252520b%3Dc%252526d")) == {"a b": "c&d"}
    assert listing.metadata("") is None
    with pytest.raises(errors.InvalidRequestError):
        listing.metadata("nonsense")
    with pytest.raises(errors.InvalidRequestError):
        listing.metadata("&".join(f"k{n}=v" for n in range(100)))


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_page_tokens(tmp_path, order):
    world = manager_fakes.World()
    made = world.server()
    await made.start()
    boxes = [await made.create(manager_fakes.REQUEST, manager_fakes.KEY) for _ in range(5)]
    await made.close(destroy=False)
    query = models.ListQueryV2(limit=2, order=order)
    shown, token = listing.cut(boxes[:3], query)
    assert list(shown) == boxes[:2]
    page = listing.page(models.ListQueryV2(limit=2, order=order, nextToken=token))
    assert (page.limit, page.descending) == (3, order == "desc")
    assert page.after == (boxes[1].started_at, boxes[1].sandbox_id)
    assert listing.cut(boxes[:2], query)[1] is None
    with pytest.raises(errors.InvalidRequestError, match="Invalid next token"):
        listing.page(models.ListQueryV2(order="asc" if order == "desc" else "desc", nextToken=token))


@hypothesis.given(st.text())
def test_bad_tokens(token):
    query = models.ListQueryV2(nextToken=token)
    if not token:
        assert listing.page(query).after is None
    else:
        with pytest.raises(errors.InvalidRequestError, match="Invalid next token"):
            listing.page(query)


def test_moment():
    naive = dt.datetime(2026, 1, 1)  # noqa: DTZ001 - that is the case
    assert listing.moment(naive) == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert listing.moment(None) is None


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00 00:00"])
def test_started_after(text):
    assert models.ListQueryV2(startedAfter=text).startedAfter == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("text", ["0.5", "17", "2026-01-01", "T", "yesterday"])
def test_bad_started_after(text):
    with pytest.raises(pydantic.ValidationError):
        models.ListQueryV2(startedAfter=text)


def test_filters():
    assert listing.states("running,paused") == listing.states(None)
    with pytest.raises(errors.InvalidRequestError):
        listing.states("asleep")
    with pytest.raises(errors.InvalidRequestError):
        listing.template("base:tag")
