"""Keys: what they open, for how long, and what is known of them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from store import keys, migrate
from store.database import connect, reading, transaction
from store.errors import NotFound
from store.keys import SCOPES, Principal, add_key, authenticate, derived_secret, new_secret, replace_key
from store.records import ApiKey
from tests.store.conftest import NOW

SECOND = timedelta(seconds=1)


def test_what_a_key_opens_and_for_how_long(engine: Engine) -> None:
    secret, other = new_secret(), new_secret()
    assert secret.startswith("bh_")
    with transaction(engine) as session:
        key = add_key(session, secret, owner="ann", name="laptop", now=NOW)
        assert add_key(session, secret, owner="bob", name="again", scopes=["admin"]).id == key.id
        assert secret not in repr(key)
        with pytest.raises(ValueError, match="unknown scopes"):
            add_key(session, other, owner="ann", name="x", scopes=["root"])
        add_key(session, other, owner="ann", name="x", scopes=["read"], expires_at=NOW + 10 * SECOND)
    with transaction(engine) as session:
        assert authenticate(session, secret, NOW) == Principal(key.id, "ann", frozenset({"read", "write"}), None)
        reader = authenticate(session, other, NOW)
        assert reader is not None
        assert (reader.scopes, reader.expires_at) == ({"read"}, NOW + 10 * SECOND)
        assert authenticate(session, other, NOW + 10 * SECOND) is None, "expired"
        assert authenticate(session, secret + "x", NOW) is None
        assert authenticate(session, "\ud800", NOW) is None
        keys.revoke_key(session, session.get_one(ApiKey, key.id), NOW)
        keys.revoke_key(session, session.get_one(ApiKey, key.id), NOW + SECOND)
        assert authenticate(session, secret, NOW) is None, "revoked"
    with reading(engine) as session:
        assert session.get_one(ApiKey, key.id).revoked_at == NOW, "the first time counts"


@pytest.mark.parametrize(
    ("scopes", "may", "gives"),
    [
        ((), set(), set()),
        (("read",), {"read"}, {"read"}),
        (("read", "keys"), {"read", "keys"}, {"read", "keys"}),
        (("metrics",), {"metrics"}, {"metrics"}),
        (("admin",), {"admin", "keys", "metrics"}, set(SCOPES)),
        (SCOPES, set(SCOPES), set(SCOPES)),
    ],
)
def test_what_scopes_allow(scopes: tuple[str, ...], may: set[str], gives: set[str]) -> None:
    principal = Principal("key_1", "ann", frozenset(scopes))
    assert {scope for scope in SCOPES if principal.may(scope)} == may
    assert set(SCOPES) - set(principal.beyond(SCOPES)) == gives


def test_lists_tell_the_states_apart(engine: Engine) -> None:
    with transaction(engine) as session:
        made = {
            name: add_key(session, new_secret(), owner=owner, name=name, expires_at=end, now=NOW)
            for name, owner, end in (
                ("lasting", "ann", None), ("ending", "ann", NOW + SECOND), ("both", "ann", NOW + SECOND),
                ("other", "bob", None),
            )
        }  # fmt: skip
        keys.revoke_key(session, made["both"], NOW)
    later = NOW + SECOND

    def names(owner: str | None, **given: object) -> list[str]:
        with reading(engine) as session:
            return [key.name for key in keys.list_keys(session, owner, now=later, **given)]  # type: ignore[arg-type]

    assert names("ann") == ["both", "ending", "lasting"]
    assert names(None) == ["other", "both", "ending", "lasting"]
    assert names("nobody") == []
    for state, expected in (("active", ["lasting"]), ("expired", ["ending"]), ("revoked", ["both"])):
        assert names("ann", state=state) == expected
        with reading(engine) as session:
            assert [keys.state_of(session.get_one(ApiKey, made[name].id), later) for name in expected] == [state]
    assert names(None, before=made["both"].id, limit=1) == ["ending"]
    with reading(engine) as session:
        assert keys.get_key(session, None, made["other"].id).name == "other"
        for owner, key_id in (("ann", made["other"].id), (None, "key_none"), ("ann", "")):
            with pytest.raises(NotFound):
                keys.get_key(session, owner, key_id)


def test_the_servers_own_key_is_renewed_and_no_other_takes_its_place(engine: Engine) -> None:
    with transaction(engine) as session:
        old = add_key(session, "bh_server", owner="local", name="server", scopes=["read", "write"], now=NOW)
        replace_key(session, "bh_server", owner="local", name="server")
    with transaction(engine) as session:
        assert session.get_one(ApiKey, old.id).scopes == list(SCOPES)
        replace_key(session, "bh_next", owner="local", name="server", now=NOW)
        session.expire_all()
        assert session.get_one(ApiKey, old.id).revoked_at == NOW
        add_key(session, "bh_anns", owner="ann", name="laptop", scopes=["read"])
        with pytest.raises(ValueError, match="'laptop' of the owner 'ann'"):
            replace_key(session, "bh_anns", owner="local", name="server")
        reader = authenticate(session, "bh_anns")
        assert reader is not None
        assert reader.scopes == {"read"}


def test_a_derived_key_takes_both_halves() -> None:
    made = derived_secret("bh_parent", "salt")
    assert made == derived_secret("bh_parent", "salt")
    assert made.startswith("bh_")
    assert len(made) == len(new_secret())
    assert len({made, derived_secret("bh_parent", "other"), derived_secret("bh_other", "salt")}) == 3


def test_the_last_use_only_goes_forward(engine: Engine) -> None:
    with transaction(engine) as session:
        key = add_key(session, "bh_a", owner="ann", name="a", now=NOW)
        assert key.last_used_at is None
    for moment, expected in ((NOW, NOW), (NOW + SECOND, NOW + SECOND), (NOW, NOW + SECOND)):
        with transaction(engine) as session:
            keys.note_use(session, {key.id: moment, "key_gone": moment})
        with reading(engine) as session:
            assert session.get_one(ApiKey, key.id).last_used_at == expected


def test_keys_from_before_stay_as_they_were(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('old')}/billhook.db")
    migrate.upgrade(engine, "0004")
    with engine.begin() as connection:
        connection.execute(text(
            "INSERT INTO api_keys (id, owner, name, sha256, scopes, created_at) VALUES "
            "('key_1', 'ann', 'old', 'x', '[\"read\", \"write\"]', '2026-01-01 00:00:00')"
        ))  # fmt: skip
    migrate.upgrade(engine)
    with reading(engine) as session:
        key = session.get_one(ApiKey, "key_1")
        assert (key.scopes, key.created_by, key.last_used_at) == (["read", "write"], None, None)
    migrate.downgrade(engine, "0004")
    migrate.upgrade(engine)
    engine.dispose()
