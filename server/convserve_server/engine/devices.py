"""The devices that TensorFlow is to use, and no others."""

from __future__ import annotations

import tensorflow as tf

from convserve.protocol.server_info import Device
from convserve_server.settings import SettingsError


def claim(device: str) -> tuple[Device, ...]:
    """Returns the devices and makes them the only ones that TensorFlow uses, growing a GPU's memory as needed.

    `device` is "auto", "cpu", "gpu:N", or several GPUs separated by commas.
    Raises SettingsError if there is no such GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu" or (device == "auto" and not gpus):
        tf.config.set_visible_devices([], "GPU")
        return (Device("cpu:0", "cpu", ""),)
    numbers = [0] if device == "auto" else [int(name.partition(":")[2]) for name in dict.fromkeys(device.split(","))]
    if max(numbers) >= len(gpus):
        text = f"Expected a GPU that TensorFlow sees; it sees {len(gpus)}."
        raise SettingsError(f"--device: {text} Received {device}.")
    tf.config.set_visible_devices([gpus[number] for number in numbers], "GPU")
    devices = []
    for number in numbers:
        tf.config.experimental.set_memory_growth(gpus[number], True)
        description = tf.config.experimental.get_device_details(gpus[number]).get("device_name", "")
        devices.append(Device(f"gpu:{number}", "gpu", description))
    return tuple(devices)
