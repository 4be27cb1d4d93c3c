"""The other control: one ORM commit of the whole message for every chunk, as is usually done."""

import time
from pathlib import Path

from holdfast.store.database import normalize_url
from holdfast.store.sqlite import pragmas
from sqlalchemy import Text, event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The ORM's base."""


class Message(Base):
    """A message whose content is written anew with every chunk."""

    __tablename__ = "naive_messages"
    id: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[str] = mapped_column(Text)


async def chunks_per_second(url: str, chunks: int) -> float:
    """How many chunks a second are stored so."""
    parsed = normalize_url(url)
    on_sqlite = parsed.get_backend_name() == "sqlite"
    engine = create_async_engine(parsed.set(drivername="sqlite+aiosqlite") if on_sqlite else parsed)
    if on_sqlite:

        @event.listens_for(engine.sync_engine, "connect")
        def connect(connection: object, _record: object) -> None:
            cursor = connection.cursor()  # type: ignore[attr-defined]
            for pragma in pragmas("full"):
                cursor.execute(pragma)
            cursor.close()

    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        message = Message(id=1, content="")
        session.add(message)
        await session.commit()
        start = time.perf_counter()
        for _ in range(chunks):
            message.content += "harbour "
            await session.commit()
        took = time.perf_counter() - start
    await engine.dispose()
    return chunks / took


def sqlite_url(folder: Path) -> str:
    """A SQLite database in a folder."""
    return f"sqlite:///{folder / 'naive.db'}"
