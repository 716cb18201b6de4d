"""The shared services are real, private and fresh for each test."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis
from sqlalchemy import create_engine, text

MakeDatabase = Callable[..., str]


def test_redis_is_real_and_has_streams(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.xadd("doorbells", {"queue": "cpu"})
        assert client.xlen("doorbells") == 1


def test_redis_is_empty_for_each_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_postgres_is_real_and_reached_through_sqlalchemy(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        assert connection.scalar(text("show server_encoding")) == "UTF8"
        assert int(connection.scalar(text("show server_version_num")) or 0) >= 140000
        connection.execute(text("create table only_here (id int)"))
    engine.dispose()


def test_each_postgres_url_is_a_database_of_its_own(make_postgres_database: MakeDatabase, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("select to_regclass('only_here')").fetchone() == (None,)
        connection.execute("create table copied as select 7 as n")
    with psycopg.connect(make_postgres_database(template=postgres_url)) as copy:
        assert copy.execute("select n from copied").fetchone() == (7,)


def test_ffmpeg_encodes_h264_and_aac(ffmpeg: Path) -> None:
    encoders = subprocess.run([ffmpeg, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True).stdout
    assert " libx264 " in encoders
    assert " aac " in encoders
