"""A network laid out anew for training: the same function of the same variables, in less time. Imports tensorflow.

Keras computes a convolution and the BatchNorm behind it as two layers. Where BatchNorm is frozen, it is a factor and a
summand per channel: multiplied into the convolution's kernel, two passes over all activations, and two over their
gradients, fall away. And a convolution of 1x1 pixels is a product of two matrices. Said so, its gradient to the inputs
is one as well, for which oneDNN takes less than half the time of its own, on processors without AVX-512.

On a processor made for it, those products are nearly twice as fast in bfloat16. Weights and all other layers stay
float32, and scoring is untouched. Measured: docs/performance.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedtask.frameworks import keras, tf

_CPU_FACTS = Path("/proc/cpuinfo")
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def multiplies_bfloat16(cpu_facts: Path = _CPU_FACTS) -> bool:
    """Whether training runs on a processor with such instructions; elsewhere bfloat16 would be slower, not faster."""
    if tf.config.list_physical_devices("GPU") or not cpu_facts.exists():
        return False
    lines = cpu_facts.read_text(errors="replace").splitlines()
    return any(line.startswith("flags") and not _CPU_FLAGS.isdisjoint(line.split()) for line in lines)


def folded(model: Any, products: Any = tf.float32) -> Any:
    """A model that computes what `model` does, from the same variables, which stay those of `model`.

    Args:
        model: a functional model of Keras. Changes of its layers' `trainable` after this are not seen.
        products: the type in which 1x1 convolutions are multiplied, `tf.float32` or `tf.bfloat16`.
    """
    convolutions = {id(layer.output): layer for layer in model.layers if _is_convolution(layer)}
    norms = {
        convolutions[id(layer.input)].name: layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and not layer.trainable  # so it is in inference mode
        and id(layer.input) in convolutions
    }
    folded_norms = {layer.name for layer in norms.values()}

    def lay_out(layer: Any) -> Any:
        if layer.name in folded_norms:
            return _Through(name=layer.name)
        return _Convolution(layer, norms.get(layer.name), products) if _is_convolution(layer) else layer

    return keras.models.clone_model(model, clone_function=lay_out)


def _is_convolution(layer: Any) -> bool:
    """Whether `_Convolution` can stand for it; all of MobileNetV2 but its first can be stood for."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return layer.depth_multiplier == 1 and not layer.use_bias
    if not isinstance(layer, keras.layers.Conv2D):
        return False
    return layer.kernel_size == layer.strides == (1, 1) and not layer.use_bias


class _Through(keras.layers.Layer):  # type: ignore[misc]
    """Where a BatchNorm was, which is called with a mask, that is now in the convolution before it."""

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return inputs


class _Convolution(keras.layers.Layer):  # type: ignore[misc]
    """A convolution, 1x1 or depthwise, without bias, and the frozen BatchNorm behind it, if there is one."""

    def __init__(self, convolution: Any, norm: Any | None, products: Any) -> None:
        super().__init__(name=convolution.name)
        self._convolution, self._norm, self._products = convolution, norm, products
        self.built = True  # the variables are those of the layers that it stands for

    def call(self, inputs: Any) -> Any:
        kernel = tf.convert_to_tensor(self._convolution.kernel)
        if self._norm is None:
            return self._convolve(inputs, kernel)
        factor = self._norm.gamma / tf.sqrt(self._norm.moving_variance + self._norm.epsilon)
        outputs = self._convolve(inputs, kernel * tf.reshape(factor, self._channels(kernel)))
        return tf.nn.bias_add(outputs, self._norm.beta - self._norm.moving_mean * factor)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self._convolution.compute_output_shape(input_shape)

    def _channels(self, kernel: Any) -> list[int]:
        """The shape of one number per channel beside the kernel, `[1, 1, in, out]` or depthwise `[h, w, in, 1]`."""
        return [1, 1, -1, 1] if self._is_depthwise else [1, 1, 1, int(kernel.shape[-1])]

    def _convolve(self, inputs: Any, kernel: Any) -> Any:
        if self._is_depthwise:
            strides = [1, *self._convolution.strides, 1]
            return tf.nn.depthwise_conv2d(inputs, kernel, strides, self._convolution.padding.upper())
        num_in, num_out = kernel.shape[-2:]
        rows = tf.cast(tf.reshape(inputs, [-1, num_in]), self._products)
        product = tf.matmul(rows, tf.cast(kernel[0, 0], self._products))
        return tf.reshape(tf.cast(product, tf.float32), [-1, *inputs.shape[1:-1], num_out])

    @property
    def _is_depthwise(self) -> bool:
        return isinstance(self._convolution, keras.layers.DepthwiseConv2D)
