// silu(gate) * up, where a row holds both side by side. A row has a block or several, and a thread takes four columns
// at once where the addresses allow.

DEVICE float swiglu_value(float gate, float up) {
    return gate * exact_sigmoid(gate) * up;
}

// The gradients of gate and up.
DEVICE Float2 swiglu_gradient(float gate, float up, float dy) {
    float s = exact_sigmoid(gate), silu = gate * s;
    float slope = fmaf(silu, 1.0f - s, s);
    return Float2{dy * up * slope, dy * silu};
}

// y [rows, inner] from gate_up [rows, 2 * inner].
// Grid (rows, ceil(inner / (4 * threads))), threads 32 to 256.
KERNEL(swiglu_forward)(const float* __restrict__ gate_up, float* __restrict__ y, int inner) {
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * inner, *up = gate + inner;
    y += (size_t)blockIdx.x * inner;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    if (inner % 4 == 0 && aligned(gate_up) && aligned(y)) {
        for (int i = first; i < inner / 4; i += stride) {
            Float4 g = ((const Float4*)gate)[i], u = ((const Float4*)up)[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) g.v[j] = swiglu_value(g.v[j], u.v[j]);
            ((Float4*)y)[i] = g;
        }
    } else {
        for (int i = first; i < inner; i += stride) y[i] = swiglu_value(gate[i], up[i]);
    }
}

// d [rows, 2 * inner], the gradients of gate and up, from gate_up [rows, 2 * inner] and dy [rows, inner].
// Launched as swiglu_forward.
KERNEL(swiglu_backward)(const float* __restrict__ gate_up, const float* __restrict__ dy, float* __restrict__ d,
                        int inner) {
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * inner, *up = gate + inner;
    float *dgate = d + (size_t)blockIdx.x * 2 * inner, *dup = dgate + inner;
    dy += (size_t)blockIdx.x * inner;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    if (inner % 4 == 0 && aligned(gate_up) && aligned(dy) && aligned(d)) {
        for (int i = first; i < inner / 4; i += stride) {
            Float4 g = ((const Float4*)gate)[i], u = ((const Float4*)up)[i], t = ((const Float4*)dy)[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                Float2 both = swiglu_gradient(g.v[j], u.v[j], t.v[j]);
                g.v[j] = both.a;
                u.v[j] = both.b;
            }
            ((Float4*)dgate)[i] = g;
            ((Float4*)dup)[i] = u;
        }
    } else {
        for (int i = first; i < inner; i += stride) {
            Float2 both = swiglu_gradient(gate[i], up[i], dy[i]);
            dgate[i] = both.a;
            dup[i] = both.b;
        }
    }
}
