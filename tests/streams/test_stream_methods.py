"""`import tensair_dask` is enough for streams to have its methods, and loads little."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from installed import PROJECT
from streamz import Stream

from tensair_dask._common import stream_methods

LOADED = (
    "; print([m for m in ('torch', 'bokeh', 'tensair_dask.trainer') if m in "
    "__import__('sys').modules])"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import tensair_dask; from streamz import Stream",
        "from streamz import Stream; import tensair_dask",
        "import tensair_dask, streamz; Stream = streamz.Stream",
        "import tensair_dask.pubsub; from streamz.core import Stream",
    ],
)
def test_importing_the_package_adds_the_methods_and_does_not_load_them(imports):
    names = [*stream_methods.NODES, *stream_methods.SOURCES]
    code = (
        f"{imports}; print(all(hasattr(Stream, name) for name in {names}), end=' '); "
        "import sys; "
        "print('tensair_dask.streams.streamz_patches' in sys.modules, end=' ')"
    )
    assert run(code + LOADED) == "True True []\n"


def test_without_streams_nothing_of_them_is_loaded():
    code = "import sys, tensair_dask; print('streamz' in sys.modules, end=' ')"
    assert run(code + LOADED) == "False []\n"


def test_streamz_is_imported_as_ever():
    code = (
        "import sys; before = list(sys.meta_path); import tensair_dask, streamz; "
        "print(streamz.__spec__.loader is streamz.__loader__, "
        "type(streamz.__loader__).__name__, "
        "[f for f in sys.meta_path if 'tensair' in type(f).__module__])"
    )
    assert run(code) == "True SourceFileLoader []\n"


def test_a_source_is_loaded_when_it_is_called(tmp_path):
    path = tmp_path / "lines"
    path.write_text("a\nb\n")
    code = (
        "import tensair_dask; from streamz import Stream; "
        f"source = Stream.from_lines({str(path)!r}); got = source.sink_to_list(); "
        "source.start(); source.join(timeout=30); source.close(); print(got); "
        "print(Stream.from_lines.__module__)"
    )
    assert run(code) == "['a', 'b']\ntensair_dask.streams.sources.files\n"


def test_a_node_is_loaded_when_it_is_called():
    code = (
        "import tensair_dask as ta; from streamz import Stream\n"
        "for name in ('train', 'predict', 'predict_then_train'):\n"
        "    try: getattr(Stream(), name)(3)\n"
        "    except ta.errors.ConfigurationError as error: print('open' in str(error))"
    )
    assert run(code) == "True\n" * 3


ENTRY_POINTS = """
import importlib.metadata as metadata, sys
groups = {groups!r}
points = metadata.EntryPoints(
    metadata.EntryPoint(name, value, group)
    for group, names in groups.items() for name, value in names.items()
)
metadata.entry_points = lambda **chosen: points.select(**chosen)
from streamz import Stream
print('tensair_dask' in sys.modules, Stream.train.__name__)
try:
    Stream().train(3)
except Exception as error:
    print(type(error).__name__)
print(Stream.train.__module__, Stream.from_lines.__name__)
import tensair_dask
print(Stream.from_lines([{path!r}]).__class__.__name__)
"""


def test_the_entry_points_need_no_import_at_all():
    groups = PROJECT["project"]["entry-points"]
    chosen = {name: groups[name] for name in ("streamz.nodes", "streamz.sources")}
    code = ENTRY_POINTS.format(groups=chosen, path=str(Path(__file__)))
    lines = run(code).splitlines()
    assert lines[:2] == ["False stub", "ConfigurationError"]
    assert lines[2].startswith("tensair_dask.streams.train_node ")
    assert lines[3] == "from_lines"


def test_all_that_the_package_adds_is_in_every_list():
    rooms = (
        "tensair_dask.streams.predict_node",
        "tensair_dask.streams.predict_then_train_node",
        "tensair_dask.streams.sources",
        "tensair_dask.streams.train_node",
        "tensair_dask.streams.try_map_node",
    )
    for room in rooms:
        importlib.import_module(room)
    here = {
        name
        for name in dir(Stream)
        if str(getattr(getattr(Stream, name), "__module__", "")).startswith(rooms)
    }
    assert here == stream_methods.NODES.keys() | stream_methods.SOURCES.keys()
    groups = PROJECT["project"]["entry-points"]
    for names, group in (
        (stream_methods.NODES, "streamz.nodes"),
        (stream_methods.SOURCES, "streamz.sources"),
    ):
        assert groups[group] == {name: f"{at}:{name}" for name, at in names.items()}


def test_the_names_of_the_room_are_nodes_whatever_is_loaded():
    code = (
        "import tensair_dask.streams as streams; from streamz import Stream\n"
        "kinds = [getattr(streams, name) for name in streams.__all__]\n"
        "assert all(issubclass(kind, Stream) for kind in kinds)\n"
        "assert all(getattr(Stream, name) for name in streams.__all__)\n"
        "assert kinds == [getattr(streams, name) for name in streams.__all__]"
    )
    assert run(code) == ""
