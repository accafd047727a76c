"""Proves docs/patterns/authentication/token-refresh.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from token_manager_core import TokenSet
from token_manager_sync import TokenStore


def test_my_store_lets_one_of_many_replace_a_token_set(my_store: TokenStore) -> None:
    # `my_store` is a fixture that makes your store, for threads; it holds one set.
    old = my_store.load()
    news = [TokenSet(f"access-{number}", "r", 1_800_000_000.5, 3600.0) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda new: my_store.save(old, new), news))
    assert done.count(True) == 1
    assert my_store.load() == news[done.index(True)]  # nothing was rounded, nothing lost
    assert my_store.save(old, None) is False
    assert my_store.save(my_store.load(), None) is True
    assert my_store.load() is None
    assert my_store.save(None, news[0]) is True


# --8<-- [end:own]
