"""Alembic's entry point; `Database.migrate` gives it the connection and owns the transaction."""

from __future__ import annotations

from alembic import context

from orqen_ray.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
