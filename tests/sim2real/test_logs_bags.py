"""Bags: what rosbags and mcap write is what is read, by topic, field, joint and clock; damage is one clear error."""

import json
import random
import sqlite3
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sim2real.errors import LogError
from sim2real.logs.sources import Options, open_source
from sim2real.logs.sources.messages import list_fields

ROS1, ROS2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_HUMBLE)
JOINTS = ["shoulder", "elbow", "wrist"]
START = 1_700_000_000_123_456_789  # [ns]: needs rounding as a float64 of seconds
SQLITE, MCAP = StoragePlugin.SQLITE3, StoragePlugin.MCAP
BZ2, LZ4 = Ros1Writer.CompressionFormat.BZ2, Ros1Writer.CompressionFormat.LZ4
STATE, TWIST = "sensor_msgs/msg/JointState", "geometry_msgs/msg/Twist"
PLAN, POINT = "trajectory_msgs/msg/JointTrajectory", "trajectory_msgs/msg/JointTrajectoryPoint"
PLAIN = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


def build(store, kind, **fields):
    """A message, with what is not given at zero."""
    return store.types[kind](
        **{name: fields[name] if name in fields else zero(store, what) for name, what in store.fielddefs[kind][1]}
    )


def zero(store, what):
    kind, inner = what
    if kind == 1:
        return "" if inner[0] == "string" else 0
    if kind == 2:
        return build(store, inner)
    (of, name), size = inner
    if of == 2 or name[0] == "string":
        return [zero(store, inner[0]) for _ in range(size if kind == 3 else 0)]
    return np.zeros(size if kind == 3 else 0, name[0])


def header(store, ns):
    stamp = build(store, "builtin_interfaces/msg/Time", sec=ns // 10**9, nanosec=ns % 10**9)
    return build(store, "std_msgs/msg/Header", stamp=stamp, frame_id="base")


def state(store, ns, names, position):
    return build(store, STATE, header=header(store, ns), name=list(names), position=np.array(position, float))


def twist(store, x, z):
    vector = "geometry_msgs/msg/Vector3"
    return build(store, TWIST, linear=build(store, vector, x=x), angular=build(store, vector, z=z))


def write_ros1(path, messages, store=ROS1, compression=None, size=500):
    """Write (topic, type, time [ns], message)."""
    bag = Ros1Writer(path)
    if compression is not None:
        bag.set_compression(compression)
    bag.chunk_threshold = size
    with bag:
        topics = {}
        for topic, kind, ns, message in messages:
            if topic not in topics:
                topics[topic] = bag.add_connection(topic, kind, typestore=store)
            bag.write(topics[topic], ns, store.serialize_ros1(message, kind))
    return path


def write_ros2(path, messages, storage=SQLITE, store=ROS2, mode=None):
    bag = Ros2Writer(path, version=9, storage_plugin=storage)
    if mode is not None:
        bag.set_compression(mode, CompressionFormat.ZSTD)
    with bag:
        topics = {}
        for topic, kind, ns, message in messages:
            if topic not in topics:
                topics[topic] = bag.add_connection(topic, kind, typestore=store)
            bag.write(topics[topic], ns, store.serialize_cdr(message, kind))
    return path


def write_mcap(path, messages, encoding="cdr", chunk_size=600, **options):
    """Write in CDR, ROS 1's encoding, or JSON; published 5 ns before it was received."""
    store = ROS1 if encoding == "ros1" else ROS2
    form = {"cdr": "ros2msg", "ros1": "ros1msg", "json": "jsonschema"}[encoding]
    with path.open("wb") as file:
        writer = McapWriter(file, chunk_size=chunk_size, **options)
        writer.start()
        channels = {}
        for topic, kind, ns, message in messages:
            if topic not in channels:
                text, name = "{}", kind
                if encoding != "json":
                    text = store.generate_msgdef(kind, ros_version=1 + (encoding == "cdr"))[0]
                if encoding == "ros1":
                    name = kind.replace("/msg/", "/")
                schema = writer.register_schema(name, form, text.encode())
                channels[topic] = writer.register_channel(topic, encoding, schema)
            if encoding == "json":
                data = json.dumps(message).encode()
            else:
                data = bytes((store.serialize_ros1 if encoding == "ros1" else store.serialize_cdr)(message, kind))
            writer.add_message(channels[topic], ns, data, ns - 5)
        writer.finish()
    return path


def write_json(path, *contents, topic="/t"):
    return write_mcap(path, [(topic, "any", START + k, content) for k, content in enumerate(contents)], "json")


def opened(path, messages=()):
    return open_source(path, Options(messages=tuple(map(str, messages))))


def read(path, *names, messages=()):
    with opened(path, messages) as source:
        return source.read({name: "observations.x" for name in names})


def columns(path, messages=()):
    with opened(path, messages) as source:
        return source.columns()


def robot(store, n=30):
    """States at 100 Hz whose joints change their order, commands at a third of that; and the truth."""
    rng = np.random.default_rng(0)
    q, x = rng.normal(size=(n, 3)), rng.normal(size=n)
    stamps = [START + 10_000_001 * k for k in range(n)]
    received = [ns + 1_234_567 for ns in stamps]
    messages = []
    for k in range(n):
        order = rng.permutation(3)
        names = [JOINTS[i] for i in order]
        messages.append(("/states", STATE, received[k], state(store, stamps[k], names, q[k, order])))
        if k % 3 == 0:
            messages.append(("/cmd", TWIST, received[k] + 7, twist(store, x[k], -x[k])))
    truth = {f"/states:position[{joint}]": q[:, i] for i, joint in enumerate(JOINTS)} | {
        "/states:stamp": np.array([ns / 10**9 for ns in stamps]),
        "/states:received": np.array([ns / 10**9 for ns in received]),
        "/cmd:linear.x": x[::3],
        "/cmd:angular.z": -x[::3],
        "/cmd:received": np.array([(ns + 7) / 10**9 for ns in received[::3]]),
    }
    return messages, truth


def as_json(messages):
    """The messages of `robot`, as a bridge to the web has them."""
    for topic, kind, ns, m in messages:
        if kind == STATE:
            stamp = {"sec": m.header.stamp.sec, "nanosec": m.header.stamp.nanosec}
            yield topic, kind, ns, {"header": {"stamp": stamp}, "name": m.name, "position": m.position.tolist()}
        else:
            parts = {"linear": m.linear, "angular": m.angular}
            yield topic, kind, ns, {name: {c: getattr(v, c) for c in "xyz"} for name, v in parts.items()}


WITHOUT_SUMMARY = {
    "index_types": IndexType.NONE,
    "repeat_channels": False,
    "repeat_schemas": False,
    "use_statistics": False,
    "use_summary_offsets": False,
}
PACKED = {"messages": CompressionMode.MESSAGE, "file": CompressionMode.FILE, "chunks": CompressionMode.STORAGE}
M1, M2, TRUTH = robot(ROS1)[0], *robot(ROS2)
WRITERS = {
    "ros1": lambda p: write_ros1(p / "a.bag", M1),
    "ros1 bz2": lambda p: write_ros1(p / "a.bag", M1, compression=BZ2),
    "ros1 lz4": lambda p: write_ros1(p / "a.bag", M1, compression=LZ4),
    "sqlite": lambda p: write_ros2(p / "a", M2),
    "sqlite file": lambda p: next(write_ros2(p / "a", M2).glob("*.db3")),
    "sqlite, messages packed": lambda p: write_ros2(p / "a", M2, mode=PACKED["messages"]),
    "sqlite, file packed": lambda p: write_ros2(p / "a", M2, mode=PACKED["file"]),
    "ros2 mcap": lambda p: write_ros2(p / "a", M2, MCAP),
    "ros2 mcap, chunks packed": lambda p: write_ros2(p / "a", M2, MCAP, mode=PACKED["chunks"]),
    "ros2 mcap, messages packed": lambda p: write_ros2(p / "a", M2, MCAP, mode=PACKED["messages"]),
    "ros2 mcap, file packed": lambda p: write_ros2(p / "a", M2, MCAP, mode=PACKED["file"]),
    "mcap of a bag": lambda p: next(write_ros2(p / "a", M2, MCAP).glob("*.mcap")),
    "mcap cdr": lambda p: write_mcap(p / "a.mcap", M2),
    "mcap ros1": lambda p: write_mcap(p / "a.mcap", M1, "ros1", compression=CompressionType.LZ4),
    "mcap json": lambda p: write_mcap(p / "a.mcap", as_json(M2), "json", compression=CompressionType.NONE),
    "mcap without chunks": lambda p: write_mcap(p / "a.mcap", M2, use_chunking=False, enable_data_crcs=True),
    "mcap without summary": lambda p: write_mcap(p / "a.mcap", M2, **WITHOUT_SUMMARY),
    "mcap without statistics": lambda p: write_mcap(p / "a.mcap", M2, use_statistics=False),
    "mcap without index": lambda p: write_mcap(p / "a.mcap", M2, index_types=IndexType.NONE),
    "mcap, channels once": lambda p: write_mcap(p / "a.mcap", M2, repeat_channels=False),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_read(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    found, info = read(path, *TRUTH), columns(path)
    for name, values in TRUTH.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert TRUTH.keys() <= info.keys()
    assert {(n.partition(":")[0], i.table, i.rows) for n, i in info.items()} == {
        ("/states", "/states", 30),
        ("/cmd", "/cmd", 10),
    }
    assert info["/states:position[elbow]"].unit == "rad"
    assert (info["/cmd:linear.x"].unit, info["/cmd:angular.z"].unit, info["/cmd:received"].unit) == (
        "m/s",
        "rad/s",
        "s",
    )
    assert info["/states:name[0]"].kind == "text"
    assert "/cmd:stamp" not in info  # a Twist has no header
    assert not any("header.stamp" in name for name in info)
    if kind.startswith("mcap"):
        published = read(path, "/cmd:published")["/cmd:published"]
        early = 0 if kind == "mcap of a bag" else 5
        received = [ns for topic, _, ns, _ in M2 if topic == "/cmd"]
        np.testing.assert_array_equal(published, [(ns - early) / 10**9 for ns in received])
    with opened(path) as source:
        drift = source.stamps(["/states", "/cmd", "/none"])
    assert drift.keys() == {"/states"}  # the others have no stamp
    np.testing.assert_array_equal(drift["/states"], np.stack([TRUTH["/states:stamp"], TRUTH["/states:received"]], 1))


def test_names_are_followed_and_numbers_are_places(tmp_path):
    messages = [
        ("/s", STATE, START, state(ROS2, 0, ["a", "b"], [1.0, 2.0])),
        ("/s", STATE, START + 1, state(ROS2, 0, ["b", "a"], [20.0, 10.0])),
        ("/s", STATE, START + 2, state(ROS2, 0, ["c", "b", "a"], [300.0, 200.0, 100.0])),
    ]
    found = read(write_ros2(tmp_path / "a", messages), "/s:position[b]", "/s:position[0]", "/s:position[a]")
    np.testing.assert_array_equal(found["/s:position[a]"], [1, 10, 100])
    np.testing.assert_array_equal(found["/s:position[b]"], [2, 20, 200])
    np.testing.assert_array_equal(found["/s:position[0]"], [1, 20, 300])


def test_joints_called_by_numbers_go_by_name(tmp_path):
    messages = [
        ("/s", STATE, START, state(ROS1, 0, ["2", "1"], [2.0, 1.0])),
        ("/s", STATE, START + 1, state(ROS1, 0, ["1", "2"], [10.0, 20.0])),
    ]
    found = read(write_ros1(tmp_path / "a.bag", messages), "/s:position[1]", "/s:position[0]")
    np.testing.assert_array_equal(found["/s:position[1]"], [1, 10])
    np.testing.assert_array_equal(found["/s:position[0]"], [2, 10])
    messages.append(("/s", STATE, START + 2, state(ROS1, 0, ["3", "4"], [3.0, 4.0])))
    with pytest.raises(LogError, match=r"position\[1\]' .* not in message 2 .* called 3, 4"):
        read(write_ros1(tmp_path / "b.bag", messages), "/s:position[1]")


@pytest.mark.parametrize("write", [lambda p, m: write_ros2(p / "a", m), lambda p, m: write_mcap(p / "a.mcap", m)])
def test_rows_are_in_the_order_of_recording(tmp_path, write):
    times = [5, 3, 9, 1, 7]
    messages = [("/s", STATE, START + t, state(ROS2, START - t, ["a"], [t])) for t in times]
    found = read(write(tmp_path, messages), "/s:position[a]", "/s:stamp", "/s:received")
    np.testing.assert_array_equal(found["/s:position[a]"], [1, 3, 5, 7, 9])
    np.testing.assert_array_equal(found["/s:stamp"], [(START - t) / 10**9 for t in sorted(times)])
    assert (np.diff(found["/s:received"]) >= 0).all()


def test_tables_and_clocks_of_topics(tmp_path):
    with opened(write_mcap(tmp_path / "a.mcap", M2)) as source:
        assert source.clock_of("/states", "/cmd:stamp") == "/states:stamp"
        assert source.clock_of("/cmd", "/states:stamp") == "/cmd:received"
        assert source.clock_of("/cmd", "/states:published") == "/cmd:published"
        assert source.clock_of("/cmd", "/states:position[elbow]") is None
        assert source.table_of("/states:position[elbow]") == "/states"
        assert source.matching("/states:position[", "]").keys() == {f"/states:position[{j}]" for j in JOINTS}
        assert source.read({}) == {}


# kinds of messages


def standard():
    v = build(ROS2, "geometry_msgs/msg/Vector3", x=1.0, y=2.0, z=3.0)
    point = build(ROS2, POINT, positions=np.array([4.0, 5.0]))
    wrench = build(ROS2, "geometry_msgs/msg/Wrench", force=v, torque=v)
    yield "/imu", "sensor_msgs/msg/Imu", {"angular_velocity": v, "linear_acceleration": v}
    yield "/wrench", "geometry_msgs/msg/WrenchStamped", {"wrench": wrench}
    yield "/twist", "geometry_msgs/msg/TwistStamped", {"twist": build(ROS2, TWIST, linear=v, angular=v)}
    yield "/effort", "std_msgs/msg/Float64MultiArray", {"data": np.array([1.0, 2.0, 6.0])}
    yield "/plan", PLAN, {"joint_names": ["b", "a"], "points": [point, point]}
    yield "/flag", "std_msgs/msg/Bool", {"data": True}
    yield "/count", "std_msgs/msg/UInt64", {"data": 2**64 - 1}


STANDARD = {
    "/imu:angular_velocity.z": (3, "rad/s"),
    "/imu:linear_acceleration.x": (1, "m/s²"),
    "/imu:orientation.w": (0, ""),
    "/imu:angular_velocity_covariance[8]": (0, ""),
    "/wrench:wrench.force.x": (1, "N"),
    "/wrench:wrench.torque.y": (2, "N·m"),
    "/twist:twist.linear.x": (1, "m/s"),
    "/twist:twist.angular.z": (3, "rad/s"),
    "/effort:data[2]": (6, ""),
    "/plan:points[0].positions[a]": (5, "rad"),
    "/plan:points[1].positions[b]": (4, None),
    "/flag:data": (1, ""),
    "/count:data": (2.0**64, ""),
}


@pytest.mark.parametrize("storage", [SQLITE, MCAP])
def test_standard_messages(tmp_path, storage):
    path = write_ros2(tmp_path / "a", [(t, k, START, build(ROS2, k, **f)) for t, k, f in standard()], storage)
    found, info = read(path, *STANDARD), columns(path)
    for name, (value, unit) in STANDARD.items():
        np.testing.assert_array_equal(found[name], [value], err_msg=name)
        assert unit is None or info[name].unit == unit, name
    assert not any("points[1]" in name for name in info)  # may be read, is not listed


LEG, BODY = "robot_msgs/msg/Leg", "robot_msgs/msg/Body"
CUSTOM = {
    LEG: "float32[3] torques\nint16[] raw\nstring label\n",
    BODY: "std_msgs/Header header\nLeg[2] pair\nLeg[] many\nbool[2] on\nfloat64 from\nuint8 LIMIT=3\n",
}
BODY_VALUES = {
    "/b:pair[1].torques[2]": 2.25,
    "/b:many[2].raw[1]": 5,
    "/b:many[0].torques[0]": 3,
    "/b:on[0]": 1,
    "/b:from_": 9,  # a word of Python, which rosbags renames
    "/b:stamp": START / 10**9,
}


def custom_store(base):
    store = get_typestore(base)
    for name, text in CUSTOM.items():
        store.register(get_types_from_msg(text, name))
    return store


def body(store):
    def leg(k):
        return store.types[LEG](np.array([k, k + 0.5, k + 0.25], np.float32), np.array([7, k], np.int16), "x")

    legs = [leg(k) for k in range(1, 6)]
    return store.types[BODY](header(store, START), legs[:2], legs[2:], np.array([True, False]), 9.0)


@pytest.mark.parametrize("kind", ["ros1", "sqlite", "mcap"])
def test_messages_of_ones_own(tmp_path, kind):
    store = custom_store(Stores.ROS1_NOETIC if kind == "ros1" else Stores.ROS2_HUMBLE)
    message = [("/b", BODY, START, body(store))]
    path = {
        "ros1": lambda: write_ros1(tmp_path / "a.bag", message, store),
        "sqlite": lambda: write_ros2(tmp_path / "a", message, SQLITE, store),
        "mcap": lambda: write_ros2(tmp_path / "a", message, MCAP, store),
    }[kind]()
    info = columns(path)
    assert info.keys() >= BODY_VALUES.keys()
    assert info["/b:pair[0].label"].kind == "text"
    assert {n: v.tolist() for n, v in read(path, *BODY_VALUES).items()} == {n: [v] for n, v in BODY_VALUES.items()}


def test_bags_without_definitions(tmp_path):
    store = custom_store(Stores.ROS2_HUMBLE)
    messages = [*M2, ("/b", BODY, START + 10**12, body(store))]
    path = next(write_ros2(tmp_path / "a", messages, SQLITE, store).glob("*.db3"))
    base = sqlite3.connect(path)  # what ROS 2 Foxy wrote has no such tables
    base.executescript("DROP TABLE message_definitions; DROP TABLE schema; DROP TABLE metadata;")
    base.executescript("ALTER TABLE topics DROP COLUMN type_description_hash")
    base.close()
    found = read(path, "/states:position[elbow]", "/b:received")
    np.testing.assert_array_equal(found["/states:position[elbow]"], TRUTH["/states:position[elbow]"])
    assert columns(path)["/b:data"].kind == "other"
    refused(path, "/b:on[0]", match=rf"'/b': the type '{BODY}' is not defined .*\.msg files.*messages:")
    for folder in (tmp_path / "robot_msgs", tmp_path / "robot_msgs" / "msg"):
        folder.mkdir()
        for name, text in CUSTOM.items():
            (folder / f"{name.split('/')[-1]}.msg").write_text(text)
        assert read(path, "/b:pair[1].torques[2]", messages=[folder])["/b:pair[1].torques[2]"] == [2.25]
        files = sorted(folder.glob("*.msg"))
        assert read(path, "/b:on[0]", messages=files)["/b:on[0]"] == [1]
        refused(path, "/b:on[0]", match=rf"'/b': the type '{LEG}' is not defined", messages=files[:1])
        for file in files:
            file.rename(file.with_suffix(".old"))
    (folder / "Leg.msg").write_text("float32[3 torques")
    refused(path, "/b:on[0]", match=r"Leg\.msg: cannot be read as a definition", messages=[folder])
    refused(path, "/b:on[0]", match=r"nowhere: no such \.msg file", messages=[tmp_path / "nowhere"])


def test_json_of_any_shape(tmp_path):
    contents = [
        {"a": {"b": [0, {"c": 1.5}]}, "on": True, "none": None, "x.y": 4, "n": "text", "stamp": 12.5},
        {"a": {"b": [0, {"c": 2}]}, "on": False, "none": 3, "x.y": None, "n": "text", "stamp": 13.5},
    ]
    path = write_json(tmp_path / "a.mcap", *contents, topic="a:b")
    expected = {"a.b[1].c": [1.5, 2], "on": [1, 0], "none": [np.nan, 3], "x.y": [4, np.nan], "stamp": [12.5, 13.5]}
    found = read(path, *(f"a:b:{name}" for name in expected))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[f"a:b:{name}"], values, err_msg=name)
    refused(path, "a:b:n", match=r"'a:b:n' .* holds text, expected numbers")
    assert read(write_json(tmp_path / "b.mcap", 3.5), "/t:value") == {"/t:value": [3.5]}
    assert read(write_json(tmp_path / "c.mcap", [1, None], [2, 3]), "/t:[0]")["/t:[0]"].tolist() == [1, 2]
    np.testing.assert_array_equal(read(tmp_path / "c.mcap", "/t:[1]")["/t:[1]"], [np.nan, 3])


NUMBERS = st.floats(allow_nan=False) | st.integers(-(2**70), 2**70) | st.booleans()
VALUES = st.recursive(
    NUMBERS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40, **PLAIN)
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3), VALUES, min_size=1, max_size=3))
def test_every_number_of_a_message_is_a_column(tmp_path, content):
    def leaves(value, name):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for k, inner in enumerate(value):
                yield from leaves(inner, f"{name}[{k}]")
        else:
            yield f"/t:{name}", float(value)

    path = write_json(tmp_path / "a.mcap", content, content)
    truth = dict(leaves(content, ""))
    assert columns(path).keys() == truth.keys() | {"/t:received", "/t:published"}
    assert {n: v.tolist() for n, v in read(path, *truth).items()} == {n: [v, v] for n, v in truth.items()}


@settings(max_examples=30, **PLAIN)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=5))
def test_nanoseconds_become_the_nearest_seconds(tmp_path, times):
    path = write_mcap(tmp_path / "a.mcap", [("/t", "any", ns + 5, {"x": 1}) for ns in times], "json")
    found = read(path, "/t:received", "/t:published")
    assert found["/t:published"].tolist() == [ns / 10**9 for ns in sorted(times)]
    assert found["/t:received"].tolist() == [(ns + 5) / 10**9 for ns in sorted(times)]


@settings(max_examples=25, **PLAIN)
@given(
    st.lists(st.tuples(st.permutations("abc"), st.lists(st.floats(), min_size=3, max_size=3)), min_size=1, max_size=9)
)
def test_joints_in_any_order(tmp_path, rows):
    messages = [("/s", STATE, START + k, state(ROS2, 0, names, values)) for k, (names, values) in enumerate(rows)]
    found = read(write_mcap(tmp_path / "a.mcap", messages), *(f"/s:position[{joint}]" for joint in "bca"))
    for joint in "abc":
        expected = [values[names.index(joint)] for names, values in rows]
        np.testing.assert_array_equal(found[f"/s:position[{joint}]"], expected)


def test_other_topics_cost_no_memory_and_are_not_decoded(tmp_path):
    image = "sensor_msgs/msg/Image"
    picture = ROS1.serialize_ros1(build(ROS1, image, data=np.zeros(1_000_000, np.uint8)), image)
    with (tmp_path / "a.mcap").open("wb") as file, Ros1Writer(tmp_path / "a.bag") as bag:
        writer = McapWriter(file, compression=CompressionType.NONE)
        writer.start()
        raw = writer.register_channel("/image", "json", 0)
        small = writer.register_channel("/t", "json", 0)
        images, twists = (bag.add_connection(t, k, typestore=ROS1) for t, k in (("/image", image), ("/t", TWIST)))
        for k in range(60):
            writer.add_message(raw, START + k, b"[" * 1_000_000, START)  # no JSON: decoding it would be seen
            writer.add_message(small, START + k, b'{"x": %d}' % k, START)
            bag.write(images, START + k, picture)
            bag.write(twists, START + k, ROS1.serialize_ros1(twist(ROS1, k, 0), TWIST))
        writer.finish()
    read(tmp_path / "a.bag", "/t:linear.x")  # imports what it needs
    for path, name in ((tmp_path / "a.mcap", "/t:x"), (tmp_path / "a.bag", "/t:linear.x")):
        tracemalloc.start()
        found = read(path, name)[name]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(found, np.arange(60))
        assert peak < 8e6


def test_images_are_not_listed_one_by_one():
    found = list_fields("/i", "x", {"data": np.zeros(10_000), "width": 3}, 1)
    assert {name: field.info.kind for name, field in found.items()} == {"data": "other", "width": "number"}


# what is refused


def refused(path, *names, match, messages=()):
    with pytest.raises(LogError, match=match) as caught:
        read(path, *names, messages=messages)
    assert any(str(file.parent) in str(caught.value) for file in (path, *messages))


def test_topics_and_fields_that_are_not_there(tmp_path):
    path = write_ros2(tmp_path / "a", M2)
    refused(path, "/state:position[elbow]", match=r"no topic '/state' \(observations\.x.*did you mean /states\?")
    refused(path, "/zzz:x", match=r"no topic '/zzz' .*available: /cmd, /states")
    refused(path, "/states:position[elbo]", match=r"no column .*did you mean /states:position\[elbow\]")
    refused(path, "/states:positon[0]", match=r"no column '/states:positon\[0\]'.*did you mean")
    refused(path, "/cmd:stamp", match="no column '/cmd:stamp'")
    refused(path, "/states:name[0]", match="holds text, expected numbers")
    refused(path, "/states:position[7]", match=r"position\[7\]' .* is not in message 0 .* 3 elements")
    refused(path, "/states", match="no column '/states'")


def test_arrays_that_become_shorter(tmp_path):
    messages = [("/s", STATE, START + k, state(ROS2, 0, JOINTS[: 3 - k], [1.0] * (3 - k))) for k in range(3)]
    path = write_ros2(tmp_path / "a", messages)
    refused(path, "/s:position[wrist]", match=r"not in message 1 .* 2 elements, called shoulder, elbow")
    refused(path, "/s:position[1]", match="not in message 2 .* 1 elements")
    more_names = [("/s", STATE, START, state(ROS2, 0, JOINTS, [1.0, 2.0]))]
    refused(write_ros2(tmp_path / "b", more_names), "/s:position[shoulder]", match="no column")
    full = build(ROS2, PLAN, joint_names=["a"], points=[build(ROS2, POINT, positions=np.array([4.0]))])
    plans = [("/p", PLAN, START, full), ("/p", PLAN, START + 1, build(ROS2, PLAN))]
    refused(write_ros2(tmp_path / "c", plans), "/p:points[0].positions[a]", match=r"no such field .* in message 1 ")


def test_fields_that_change_their_kind(tmp_path):
    path = write_json(tmp_path / "a.mcap", {"x": 1, "y": [1]}, {"x": "a", "y": ["b"]})
    refused(path, "/t:x", match="must hold numbers, found 'a' in message 1 ")
    refused(path, "/t:y[0]", match=r"must hold numbers, found \['b'\] in message 1 ")
    path = write_json(tmp_path / "b.mcap", {"x": 1, "y": [1]}, {"y": {"0": 1}})
    refused(path, "/t:x", match="no such field .* in message 1 ")
    refused(path, "/t:y[0]", match="must hold numbers, found .* in message 1 ")


def test_encodings_that_nobody_reads(tmp_path):
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        one = writer.register_channel("/p", "protobuf", writer.register_schema("P", "protobuf", b"\0"))
        two = writer.register_channel("/q", "cdr", writer.register_schema("q/msg/Q", "flatbuffer", b"\0"))
        three = writer.register_channel("/t", "json", 0)
        for channel in (one, two, three):
            writer.add_message(channel, START, b'{"x": 4}' if channel == three else b"\0", START)
        writer.finish()
    info = columns(path)
    assert info["/p:data"].kind == info["/q:data"].kind == "other"
    assert read(path, "/p:received", "/t:x") == {"/p:received": [START / 10**9], "/t:x": [4]}
    refused(path, "/p:x", match=r"messages of '/p' are encoded as 'protobuf' .*expected json, or cdr")
    refused(path, "/q:x", match=r"messages of '/q' are encoded as 'cdr' \(schema 'flatbuffer'\)")


def test_two_types_on_one_topic(tmp_path):
    path = tmp_path / "a.bag"
    with Ros1Writer(path) as bag:
        for kind in (TWIST, STATE):
            bag.write(
                bag.add_connection("/t", kind, typestore=ROS1), START, ROS1.serialize_ros1(build(ROS1, kind), kind)
            )
    assert columns(path)["/t:data"].kind == "other"
    refused(path, "/t:linear.x", match=f"'/t' holds messages of several types: {TWIST}, {STATE}")


def file_of(path):
    return next(f for f in path.iterdir() if f.suffix in (".db3", ".mcap")) if path.is_dir() else path


CUTS = {
    "ros1": "index|cannot be read|record",
    "sqlite": "is cut off: it has",
    "ros2 mcap": "cut off, or never finished",
    "mcap cdr": "cut off, or never finished",
    "mcap without chunks": "cut off, or never finished",
}


@pytest.mark.parametrize("kind", CUTS)
def test_files_that_are_cut_off_or_empty(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    file = file_of(path)
    whole = file.read_bytes()
    for size in (0, 1, 10, 100, len(whole) // 3, len(whole) * 9 // 10, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(path, *TRUTH, match="." if size < 200 else CUTS[kind])


def test_bags_that_were_not_finished(tmp_path):
    path = WRITERS["ros1"](tmp_path)
    data = path.read_bytes()
    at = data.index(b"index_pos=") + 10
    path.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    refused(path, "/cmd:linear.x", match="was not finished: it has no index; run `rosbag reindex`")
    file = WRITERS["sqlite file"](tmp_path)
    file.with_name(file.name + "-wal").write_bytes(b"x")
    refused(file, "/cmd:linear.x", match=r"was not closed: part of it is still in .*-wal")


@pytest.mark.parametrize("kind", ["mcap cdr", "mcap ros1", "mcap json", "mcap without chunks"])
def test_a_wrong_bit_is_found_by_the_checksums(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(40):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = read(path, *TRUTH)
        except LogError:
            continue
        assert all(np.array_equal(found[name], values) for name, values in TRUTH.items())


@pytest.mark.parametrize("kind", ["ros1 bz2", "ros1", "sqlite", "ros2 mcap, messages packed", "mcap without summary"])
def test_damage_is_one_kind_of_error(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    file = file_of(path)
    whole, rng = file.read_bytes(), random.Random(1)
    for k in range(20):
        data, at = bytearray(whole), rng.randrange(len(whole))
        if k % 3 == 0:
            data[at : at + 4] = b"\xff" * 4
        elif k % 3 == 1:
            data[at:at] = rng.randbytes(5)
        else:
            del data[at : at + 5]
        file.write_bytes(data)
        try:
            with opened(path) as source:
                source.columns()
                source.read(dict.fromkeys(TRUTH, ""))
        except LogError:
            pass


@pytest.mark.parametrize(
    ("kind", "after"), [("ros1", b"chunk_pos="), ("ros1", b"size="), ("mcap without summary", b"")]
)
def test_a_length_of_4_gb_takes_no_memory(tmp_path, kind, after):
    path = WRITERS[kind](tmp_path)
    data = path.read_bytes()
    read(path, *TRUTH)
    at = data.index(after) + len(after) if after else data.index(b"\x06") + 1  # a chunk's own length
    path.write_bytes(data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 :])
    tracemalloc.start()
    refused(path, *TRUTH, match=".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e7


def test_lost_chunks_of_a_ros1_bag(tmp_path):
    path = WRITERS["ros1"](tmp_path)
    data = path.read_bytes()
    at = data.index(b"chunk_count=") + 12
    count = int.from_bytes(data[at : at + 4], "little")
    path.write_bytes(data[:at] + (count - 1).to_bytes(4, "little") + data[at + 4 :])
    refused(path, "/cmd:linear.x", match="its index does not fit the file")


def test_metadata_that_cannot_be_trusted(tmp_path):
    path = write_ros2(tmp_path / "a", M2)
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    for bad in ("/etc/passwd", "../a/a.db3", "..\\a.db3"):
        metadata.write_text(text.replace("a.db3", bad))
        refused(path, "/cmd:linear.x", match="leads out of the bag")
    metadata.write_text(text.replace("a.db3", "b.db3"))
    refused(path, "/cmd:linear.x", match=r"no file 'b\.db3', which metadata\.yaml names; did you mean a\.db3\?")
    metadata.write_text(text.replace("message_count: 30", "message_count: 31"))
    refused(path, "/states:position[elbow]", match="1 messages of '/states' less than its metadata says")
    for bad in ("", "a: [", "rosbag2_bagfile_information: 3", "- 1"):
        metadata.write_text(bad)
        refused(path, "/cmd:linear.x", match=r"metadata\.yaml: cannot be read as that of a ROS 2 bag")
    metadata.write_text(text.replace("a.db3", "a/a.db3"))  # as old versions have it
    assert len(read(path, "/cmd:linear.x")["/cmd:linear.x"]) == 10
    (path / "a.db3").rename(path / "c.db3")
    refused(path, "/cmd:linear.x", match=r"no file 'a/a\.db3'")
    metadata.unlink()
    refused(path, "/cmd:linear.x", match="no data set")


def test_a_definition_that_would_take_the_memory(tmp_path):
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema("p/msg/Big", "ros2msg", b"string[4000000000] names\n")
        writer.add_message(writer.register_channel("/t", "cdr", schema), START, bytes(8), START)
        writer.finish()
    refused(path, "/t:x", match=r"definition of the messages of '/t' .* 4,000,000,000 elements")
