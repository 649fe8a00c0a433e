"""Bags: what rosbags and mcap write is what is read, each topic on its own clock."""

import json

import numpy as np
import pytest
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs
from sim2real.logs.draft import draft_schema
from sim2real.logs.lint import check_recordings
from sim2real.logs.read import read_raw
from sim2real.logs.sources import open_source

N = 300
T = (1.7e9 * 1e9 + np.cumsum(np.random.default_rng(0).integers(9_000_000, 11_000_000, N))).astype(np.int64)  # ns
Q = np.random.default_rng(1).normal(size=(N, 3))
U = np.random.default_rng(2).normal(size=(N, 3))
JOINTS = ["hip", "knee", "ankle"]
IMU_T = T[0] + 2_500_000 * np.arange(4 * N)
SENT_T = T + 3_000_000
SCHEMA = {
    "time": {"column": "/joint_states:stamp", "unit": "s"},
    "observations": {
        "*": {"column": "/joint_states:position[*]", "unit": "rad"},
        "yaw_rate": {"column": "/imu:angular_velocity.z", "unit": "rad/s"},
    },
    "actions": {"u*": {"column": "/effort_controller/commands:data[*]", "unit": "N·m"}},
    "action_source": "commanded",
    "measured_actions": {"u*": {"column": "/joint_states:effort[*]", "unit": "N·m"}},
}
del SCHEMA["measured_actions"]


def types(store):
    return lambda name: store.types[name]


def write_topics(bag, store, serialize, ros1):
    """Write joint states in shuffled order of the joints, an IMU four times as fast, commands, and an image."""
    of = types(store)
    header, stamp = of("std_msgs/msg/Header"), of("builtin_interfaces/msg/Time")
    state, imu = of("sensor_msgs/msg/JointState"), of("sensor_msgs/msg/Imu")
    vector, quaternion = of("geometry_msgs/msg/Vector3"), of("geometry_msgs/msg/Quaternion")
    floats, layout, image = (
        of("std_msgs/msg/Float64MultiArray"),
        of("std_msgs/msg/MultiArrayLayout"),
        of("sensor_msgs/msg/Image"),
    )
    extra = {"seq": 0} if ros1 else {}

    def head(ns):
        return header(stamp=stamp(int(ns) // 10**9, int(ns) % 10**9), frame_id="base", **extra)

    rng = np.random.default_rng(3)
    zero, none = np.zeros(9), np.zeros(0)
    messages = []
    for k in range(N):
        order = rng.permutation(3)
        names = [JOINTS[j] for j in order]
        messages.append((T[k] + 1_000_000, "/joint_states", state(head(T[k]), names, Q[k, order], none, U[k, order])))
        messages.append((SENT_T[k], "/effort_controller/commands", floats(layout([], 0), U[k])))
    for ns in IMU_T:
        spin = vector(0.0, 0.0, float(np.sin(1e-9 * (ns - T[0]))))
        still = vector(0.0, 0.0, 9.81)
        messages.append((ns + 500_000, "/imu", imu(head(ns), quaternion(0, 0, 0, 1), zero, spin, zero, still, zero)))
    for ns in T[::10]:
        messages.append((ns, "/camera", image(head(ns), 64, 64, "mono8", 0, 64, np.zeros(64 * 64, np.uint8))))
    connections = {}
    for ns, topic, message in sorted(messages, key=lambda m: m[0]):
        if topic not in connections:
            connections[topic] = bag.add_connection(topic, message.__msgtype__, typestore=store)
        bag.write(connections[topic], int(ns), serialize(message, message.__msgtype__))


def ros1(folder):
    store = get_typestore(Stores.ROS1_NOETIC)
    bag = Ros1Writer(folder / "run.bag")
    bag.set_compression(bag.CompressionFormat.LZ4)
    with bag:
        write_topics(bag, store, store.serialize_ros1, True)
    return folder / "run.bag"


def ros2(folder, storage, mode=CompressionMode.NONE):
    store = get_typestore(Stores.ROS2_HUMBLE)
    bag = Ros2Writer(folder / "run", version=9, storage_plugin=storage)
    if mode != CompressionMode.NONE:
        bag.set_compression(mode, CompressionFormat.ZSTD)
    with bag:
        write_topics(bag, store, store.serialize_cdr, False)
    return folder / "run"


BAGS = {
    "ros1": ros1,
    "sqlite": lambda folder: ros2(folder, StoragePlugin.SQLITE3),
    "sqlite_packed": lambda folder: ros2(folder, StoragePlugin.SQLITE3, CompressionMode.FILE),
    "mcap": lambda folder: ros2(folder, StoragePlugin.MCAP),
    "mcap_file": lambda folder: next(ros2(folder, StoragePlugin.MCAP).glob("*.mcap")),
    "sqlite_file": lambda folder: next(ros2(folder, StoragePlugin.SQLITE3).glob("*.db3")),
}


@pytest.mark.filterwarnings("ignore:.*what the other clocks cover", "ignore:.*held onto")
@pytest.mark.parametrize("kind", BAGS)
def test_bags(tmp_path, kind):
    path = BAGS[kind](tmp_path)
    (episode,) = read_logs(path, SCHEMA)
    inside = (IMU_T[0] / 1e9 <= T / 1e9) & (IMU_T[-1] / 1e9 >= T / 1e9)
    # commands have no header: their clock is when they were recorded
    np.testing.assert_allclose(episode.observed_at, T[inside] / 1e9, rtol=0, atol=3e-7)
    np.testing.assert_allclose(episode.commanded_at, SENT_T[inside][:-1] / 1e9, rtol=0, atol=3e-7)
    np.testing.assert_array_equal(episode.actions, U[inside][:-1])
    names = [n for n, _ in episode.channels.observations]
    order = [names.index(j) for j in JOINTS]
    np.testing.assert_array_equal(episode.observations[:, order], Q[inside])
    inner = slice(5, -5)
    expected = np.sin(episode.observed_at - T[0] / 1e9)
    np.testing.assert_allclose(episode.observations[inner, names.index("yaw_rate")], expected[inner], atol=2e-3)


def test_columns_have_units_and_images_are_not_listed_one_by_one(tmp_path):
    with open_source(BAGS["mcap"](tmp_path)) as source:
        known = source.columns()
    assert known["/joint_states:position[knee]"].unit == "rad"
    assert known["/joint_states:effort[knee]"].unit == "N·m"
    assert known["/imu:linear_acceleration.z"].unit == "m/s²"
    assert known["/joint_states:position[knee]"].rows == N
    assert (
        known["/camera:data[0]"].kind == "number"
        if "/camera:data[0]" in known
        else known["/camera:data"].kind == "other"
    )
    assert known["/camera:encoding"].kind == "text"
    assert {"/imu:stamp", "/imu:received", "/imu:published"} <= known.keys()


def test_a_schema_is_drafted_from_a_bag(tmp_path):
    path = BAGS["sqlite"](tmp_path)
    text = draft_schema(path)
    schema = LogSchema.load(__import__("yaml").safe_load(text))
    assert schema.time.column == "/joint_states:stamp" or schema.time.column.endswith(":stamp")
    assert any("/effort_controller/commands:data" in c.column for c in schema.actions.values())


def test_clocks_of_topics_that_drift_are_found(tmp_path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    of = types(store)
    with Ros2Writer(tmp_path / "run", version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topic = bag.add_connection("/joint_states", "sensor_msgs/msg/JointState", typestore=store)
        for k in range(3000):
            ns = 10_000_000 * k + 10**18
            stamp = of("builtin_interfaces/msg/Time")(ns // 10**9, ns % 10**9)
            head = of("std_msgs/msg/Header")(stamp=stamp, frame_id="")
            message = of("sensor_msgs/msg/JointState")(head, ["a"], np.sin([k / 40]), np.zeros(0), np.cos([k / 40]))
            received = ns + int(200e-6 * 10_000_000 * k) + 500_000
            bag.write(topic, received, store.serialize_cdr(message, topic.msgtype))
    schema = {
        "time": {"column": "/joint_states:stamp", "unit": "s"},
        "observations": {"a": {"column": "/joint_states:position[a]", "unit": "rad"}},
        "actions": {"a": {"column": "/joint_states:effort[a]", "unit": "N·m"}},
        "action_source": "measured",
    }
    report = check_recordings(read_raw(tmp_path / "run", LogSchema.load(schema)))
    (found,) = [f for f in report.findings if f.code == "LOG018"]
    assert found.values["drift"] == pytest.approx(200e-6, rel=0.02)


def test_json_in_mcap_and_what_nobody_can_decode(tmp_path):
    with (tmp_path / "a.mcap").open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema("joints", "jsonschema", b"{}")
        channel = writer.register_channel("/joints", "json", schema)
        other = writer.register_channel("/proto", "protobuf", writer.register_schema("x.Y", "protobuf", b""))
        for k in reversed(range(50)):  # a file need not be in order
            data = json.dumps({"state": {"q": [k, 2 * k]}, "u": -k}).encode()
            writer.add_message(channel, 10**9 + k * 10**7, data, 10**9 + k * 10**7 - 5)
            writer.add_message(other, 10**9 + k * 10**7, b"\x00", 0)
        writer.finish()
    base = {
        "time": {"column": "/joints:published", "unit": "s"},
        "observations": {"q*": {"column": "/joints:state.q[*]", "unit": "rad"}},
        "actions": {"u": {"column": "/joints:u", "unit": "N·m"}},
        "action_source": "commanded",
    }
    (episode,) = read_logs(tmp_path / "a.mcap", base)
    k = np.arange(50)
    np.testing.assert_array_equal(episode.observed_at, (10**9 + k * 10**7 - 5) / 1e9)
    np.testing.assert_array_equal(episode.observations, np.stack([k, 2 * k], 1))
    wrong = {**base, "actions": {"u": {"column": "/proto:torque", "unit": "N·m"}}}
    with pytest.raises(LogError, match=r"'/proto' are encoded as 'protobuf' .*expected json, or cdr or ros1"):
        read_logs(tmp_path / "a.mcap", wrong)


CUSTOM = "std_msgs/Header header\nfloat32[4] torque\nmy_msgs/Leg[] legs\n"
LEG = "float64 angle\nuint16 count\n"


def test_custom_messages_by_field_path_and_their_definitions(tmp_path):
    store = get_typestore(Stores.ROS2_FOXY)
    store.register({**get_types_from_msg(LEG, "my_msgs/msg/Leg"), **get_types_from_msg(CUSTOM, "my_msgs/msg/Legs")})
    of = types(store)
    with Ros2Writer(tmp_path / "run", version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
        topic = bag.add_connection("/legs", "my_msgs/msg/Legs", typestore=store)
        for k in range(60):
            head = of("std_msgs/msg/Header")(of("builtin_interfaces/msg/Time")(5, k * 10**7), "")
            legs = [of("my_msgs/msg/Leg")(0.1 * k, 7), of("my_msgs/msg/Leg")(-0.1 * k, 9)]
            message = of("my_msgs/msg/Legs")(head, np.full(4, k, np.float32), legs)
            bag.write(topic, 5 * 10**9 + k * 10**7, store.serialize_cdr(message, topic.msgtype))
    schema = {
        "time": {"column": "/legs:stamp", "unit": "s"},
        "observations": {"left": {"column": "/legs:legs[1].angle", "unit": "rad"}},
        "actions": {"u": {"column": "/legs:torque[2]", "unit": "N·m"}},
        "action_source": "commanded",
    }
    package = tmp_path / "my_msgs" / "msg"
    package.mkdir(parents=True)
    (package / "Leg.msg").write_text(LEG)
    (package / "Legs.msg").write_text(CUSTOM)
    (episode,) = read_logs(tmp_path / "run", {**schema, "messages": [str(tmp_path / "my_msgs")]})
    np.testing.assert_allclose(episode.observations[:, 0], -0.1 * np.arange(60))
    np.testing.assert_array_equal(episode.actions[:, 0], np.arange(59))
    with pytest.raises(LogError, match=r"no such \.msg file"):
        read_logs(tmp_path / "run", {**schema, "messages": [str(tmp_path / "none")]})


def test_only_wanted_topics_are_held_in_memory(tmp_path):
    import tracemalloc

    store = get_typestore(Stores.ROS2_HUMBLE)
    of = types(store)
    with Ros2Writer(tmp_path / "run", version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topic = bag.add_connection("/camera", "sensor_msgs/msg/Image", typestore=store)
        small = bag.add_connection("/u", "std_msgs/msg/Float64", typestore=store)
        for k in range(60):
            head = of("std_msgs/msg/Header")(of("builtin_interfaces/msg/Time")(5, k), "")
            picture = of("sensor_msgs/msg/Image")(head, 1000, 1000, "mono8", 0, 1000, np.zeros(10**6, np.uint8))
            bag.write(topic, k * 10**7, store.serialize_cdr(picture, topic.msgtype))
            bag.write(small, k * 10**7, store.serialize_cdr(of("std_msgs/msg/Float64")(float(k)), small.msgtype))
    tracemalloc.start()
    with open_source(tmp_path / "run") as source:
        values = source.read({"/u:data": "u"})["/u:data"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(values, np.arange(60))
    assert peak < 30e6  # of 60 MB


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"/joint_state:position[hip]": "q"}, r"no topic '/joint_state' \(q; .*did you mean /joint_states"),
        ({"/joint_states:positon[hip]": "q"}, r"no column '/joint_states:positon\[hip\]' \(q\); did you mean"),
        ({"/joint_states:position[elbow]": "q"}, r"no column '/joint_states:position\[elbow\]'"),
        ({"/joint_states:position[7]": "q"}, r"is not in message 0 \(the first is 0\), whose array has 3 elements"),
        ({"/camera:encoding": "q"}, r"'/camera:encoding' \(q\) holds text, expected numbers"),
    ],
)
def test_what_is_not_there(tmp_path, wanted, message):
    with open_source(BAGS["mcap"](tmp_path)) as source, pytest.raises(LogError, match=message):
        source.read(wanted)


def test_damaged_bags(tmp_path):
    folder = BAGS["mcap"](tmp_path)
    (file,) = folder.glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match="run"):
        read_logs(folder, SCHEMA)
    file.write_bytes(whole)
    metadata = folder / "metadata.yaml"
    text = metadata.read_text()
    metadata.write_text(text.replace(file.name, "../" + file.name))
    with pytest.raises(LogError, match=r"leads out of the bag; do not trust it"):
        read_logs(folder, SCHEMA)
    metadata.write_text(text.replace(file.name, "other.mcap"))
    with pytest.raises(LogError, match=r"no file 'other\.mcap', which metadata\.yaml names"):
        read_logs(folder, SCHEMA)
    metadata.write_text("a: [")
    with pytest.raises(LogError, match=r"cannot be read as that of a ROS 2 bag"):
        read_logs(folder, SCHEMA)
