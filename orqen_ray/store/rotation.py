"""Changing the key that seals credentials, without an instant at which some row cannot be opened."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import select, update

from orqen_ray.errors import StoreUnavailable
from orqen_ray.store.cipher import Cipher, new_secret_key
from orqen_ray.store.database import Database
from orqen_ray.store.secrets import sealing
from orqen_ray.store.tables import PROVIDER_CREDENTIALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How many credentials there are, how many of them were sealed anew, and whether the key file has a new key."""

    credentials: int
    resealed: int
    new_key: bool


async def rotate(database: Database, cipher: Cipher) -> Rotation:
    """Seal every stored credential with the newest key.

    With a key file a new key is added first, unless an interrupted rotation left one, and the old ones go last: killed
    at any point, the file holds a key for each row, and doing it again finishes the work. Keys of the environment stay
    as they are: the first of them seals.

    Raises:
        StoreUnavailable: the database or the key file cannot be used, or a row cannot be opened with any key.
    """
    async with sealing(cipher, exclusive=True):
        new_key = False
        if (key_file := cipher.key_file) is not None:
            keys = await asyncio.to_thread(key_file.read)
            new_key = True
            if len(keys) == 1:
                keys = (new_secret_key(), *keys)
                await asyncio.to_thread(key_file.write, keys)
            await asyncio.to_thread(cipher.reload)
        credentials, resealed = await _reseal(database, cipher)
        if key_file is not None:
            await asyncio.to_thread(key_file.write, keys[:1])
    return Rotation(credentials=credentials, resealed=resealed, new_key=new_key)


async def _reseal(database: Database, cipher: Cipher) -> tuple[int, int]:
    """How many rows there are, and how many were changed. Goes on until a look at all of them finds nothing to do."""
    table = PROVIDER_CREDENTIALS
    resealed = 0
    while True:
        async with database.begin() as connection:
            rows = (await connection.execute(select(table.c.provider, table.c.label, table.c.ciphertext))).all()
        old = [row for row in rows if not cipher.is_newest(row.ciphertext)]
        if not old:
            return len(rows), resealed
        for row in old:
            try:
                sealed = cipher.seal(cipher.open(row.ciphertext))
            except StoreUnavailable:
                raise StoreUnavailable(
                    f"the credentials {row.label!r} of {row.provider!r} cannot be opened with any key, so no key was "
                    f"taken away: `orqen providers disconnect {row.provider} --label {row.label}`, and rotate again"
                ) from None
            # Only the row that was read: what somebody has stored meanwhile is left alone, and looked at again.
            same = (table.c.provider == row.provider, table.c.label == row.label, table.c.ciphertext == row.ciphertext)
            async with database.begin(write=True) as connection:
                resealed += (await connection.execute(update(table).where(*same).values(ciphertext=sealed))).rowcount
