// silu(gate) * up, or gelu(gate) * up, where a row holds both side by side (prelude.cuh has both). A row has a block
// or several, and a thread takes four columns at once where the addresses allow.

namespace swiglu_kernels {

template <Gate GATE> DEVICE void forward(const float* __restrict__ gate_up, float* __restrict__ y, int inner) {
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * inner, *up = gate + inner;
    y += (size_t)blockIdx.x * inner;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    if (inner % 4 == 0 && aligned(gate_up) && aligned(y)) {
        for (int i = first; i < inner / 4; i += stride) {
            Float4 g = ((const Float4*)gate)[i], u = ((const Float4*)up)[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) g.v[j] = gate_value<GATE>(g.v[j], u.v[j]);
            ((Float4*)y)[i] = g;
        }
    } else {
        for (int i = first; i < inner; i += stride) y[i] = gate_value<GATE>(gate[i], up[i]);
    }
}

template <Gate GATE>
DEVICE void backward(const float* __restrict__ gate_up, const float* __restrict__ dy, float* __restrict__ d, int inner) {
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * inner, *up = gate + inner;
    float *dgate = d + (size_t)blockIdx.x * 2 * inner, *dup = dgate + inner;
    dy += (size_t)blockIdx.x * inner;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    if (inner % 4 == 0 && aligned(gate_up) && aligned(dy) && aligned(d)) {
        for (int i = first; i < inner / 4; i += stride) {
            Float4 g = ((const Float4*)gate)[i], u = ((const Float4*)up)[i], t = ((const Float4*)dy)[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                Float2 both = gate_gradient<GATE>(g.v[j], u.v[j], t.v[j]);
                g.v[j] = both.a;
                u.v[j] = both.b;
            }
            ((Float4*)dgate)[i] = g;
            ((Float4*)dup)[i] = u;
        }
    } else {
        for (int i = first; i < inner; i += stride) {
            Float2 both = gate_gradient<GATE>(gate[i], up[i], dy[i]);
            dgate[i] = both.a;
            dup[i] = both.b;
        }
    }
}

}  // namespace swiglu_kernels

// y [rows, inner] from gate_up [rows, 2 * inner].
// Grid (rows, ceil(inner / (4 * threads))), threads 32 to 256.
KERNEL(swiglu_forward)(const float* gate_up, float* y, int inner) {
    swiglu_kernels::forward<SILU>(gate_up, y, inner);
}
KERNEL(swiglu_gelu_forward)(const float* gate_up, float* y, int inner) {
    swiglu_kernels::forward<GELU>(gate_up, y, inner);
}

// d [rows, 2 * inner], the gradients of gate and up, from gate_up [rows, 2 * inner] and dy [rows, inner].
// Launched as swiglu_forward.
KERNEL(swiglu_backward)(const float* gate_up, const float* dy, float* d, int inner) {
    swiglu_kernels::backward<SILU>(gate_up, dy, d, inner);
}
KERNEL(swiglu_gelu_backward)(const float* gate_up, const float* dy, float* d, int inner) {
    swiglu_kernels::backward<GELU>(gate_up, dy, d, inner);
}
