"""A copy of a model, compiled as the model is: with the live functions and losses, and an optimizer of its own."""

from __future__ import annotations

from typing import Any

import keras


def compile_alike(model: Any, made: Any) -> None:
    """Compiles a copy with what its model was compiled with. The optimizer's state is not copied."""
    if not model.compiled:
        return
    if type(made).compile is not keras.Model.compile or not hasattr(model, "_compile_config"):
        made.compile_from_config(model.get_compile_config())  # a class of one's own says there what it needs
        return
    made.compile(
        **{name: keras.tree.map_structure(_own, value) for name, value in model._compile_config.config.items()}
    )
    if made.built and made.optimizer is not None:
        made.optimizer.build(made.trainable_variables)


def _own(value: Any) -> Any:
    """Returns an object that is not to be shared anew, and any other as it is."""
    if isinstance(value, keras.optimizers.Optimizer):
        config = value.get_config()
        if isinstance(value._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            config["learning_rate"] = value._learning_rate
        return type(value).from_config(config)
    if isinstance(value, keras.metrics.Metric):
        try:
            return type(value).from_config(value.get_config())
        except (TypeError, ValueError):  # of a function that Keras cannot find by its name
            return value
    return value
