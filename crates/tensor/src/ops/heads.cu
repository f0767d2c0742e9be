// From projections to attention heads, and back. A token has a block, or several (blockIdx.y); a thread takes pairs of
// components. Tables of cosines and sines are [positions, half]. A rotated head holds the first members of all
// pairs before the second members.

// Where a head's pair i lies before rotation.
struct HeadsPair {
    int a, b;
};

DEVICE HeadsPair heads_pair(int i, int half, int interleaved) {
    return interleaved ? HeadsPair{2 * i, 2 * i + 1} : HeadsPair{i, i + half};
}

// Rotates pair i of the head x into y.
DEVICE void heads_rotate(const float* x, float cos, float sin, int i, int half, int interleaved, float* y) {
    HeadsPair p = heads_pair(i, half, interleaved);
    float a = x[p.a], b = x[p.b];
    y[i] = fmaf(a, cos, -(b * sin));
    y[i + half] = fmaf(b, cos, a * sin);
}

// The transpose for a pair's gradients. The zero that they are added to turns -0 into 0.
DEVICE void heads_rotate_back(float da, float db, float cos, float sin, int i, int half, int interleaved, float* dx) {
    HeadsPair p = heads_pair(i, half, interleaved);
    dx[p.a] = 0.0f + fmaf(da, cos, db * sin);
    dx[p.b] = 0.0f + fmaf(db, cos, -(da * sin));
}

// qkv [n, (heads + 2 * kv_heads) * dim] -> q [n, heads * dim] and k [n, kv_heads * dim] rotated, v [n, kv_heads * dim];
// dim = 2 * half; positions [n].
// Grid (n, ceil((heads + 2 * kv_heads) * half / (4 * threads))), threads 32 to 256.
KERNEL(heads_split_qkv_forward)(const float* qkv, const int* positions, const float* cos, const float* sin, float* q,
                                float* k, float* v, int heads, int kv_heads, int half, int interleaved) {
    int dim = 2 * half, all = heads + 2 * kv_heads;
    size_t t = blockIdx.x, angle = (size_t)positions[t] * half;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < all * half; item += stride) {
        int head = item / half, i = item % half;
        const float* x = qkv + (t * all + head) * dim;
        if (head < heads) {
            heads_rotate(x, cos[angle + i], sin[angle + i], i, half, interleaved, q + (t * heads + head) * dim);
        } else if (head < heads + kv_heads) {
            float* y = k + (t * kv_heads + head - heads) * dim;
            heads_rotate(x, cos[angle + i], sin[angle + i], i, half, interleaved, y);
        } else {
            float* y = v + (t * kv_heads + head - heads - kv_heads) * dim;
            y[i] = x[i];
            y[i + half] = x[i + half];
        }
    }
}

// dx [n, (heads + 2 * kv_heads) * dim] from dq, dk, dv, shaped as q, k, v above (zeros where no gradient arrived).
// Launched as the forward kernel.
KERNEL(heads_split_qkv_backward)(const float* dq, const float* dk, const float* dv, const int* positions,
                                 const float* cos, const float* sin, float* dx, int heads, int kv_heads, int half,
                                 int interleaved) {
    int dim = 2 * half, all = heads + 2 * kv_heads;
    size_t t = blockIdx.x, angle = (size_t)positions[t] * half;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < all * half; item += stride) {
        int head = item / half, i = item % half;
        float* x = dx + (t * all + head) * dim;
        if (head < heads + kv_heads) {
            const float* d = head < heads ? dq + (t * heads + head) * dim : dk + (t * kv_heads + head - heads) * dim;
            heads_rotate_back(d[i], d[i + half], cos[angle + i], sin[angle + i], i, half, interleaved, x);
        } else {
            const float* d = dv + (t * kv_heads + head - heads - kv_heads) * dim;
            x[i] = d[i];
            x[i + half] = d[i + half];
        }
    }
}

// y [n, heads * dim] = x [n, heads * dim], every head rotated.
// Grid (n, ceil(heads * half / (4 * threads))), threads 32 to 256.
KERNEL(heads_rope_forward)(const float* x, const int* positions, const float* cos, const float* sin, float* y,
                           int heads, int half, int interleaved) {
    size_t t = blockIdx.x, angle = (size_t)positions[t] * half;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < heads * half; item += stride) {
        int i = item % half;
        size_t at = (t * heads + item / half) * 2 * half;
        heads_rotate(x + at, cos[angle + i], sin[angle + i], i, half, interleaved, y + at);
    }
}

// dx [n, heads * dim] from dy [n, heads * dim].
// Launched as the forward kernel.
KERNEL(heads_rope_backward)(const float* dy, const int* positions, const float* cos, const float* sin, float* dx,
                            int heads, int half, int interleaved) {
    size_t t = blockIdx.x, angle = (size_t)positions[t] * half;
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < heads * half; item += stride) {
        int i = item % half;
        size_t at = (t * heads + item / half) * 2 * half;
        float c = cos[angle + i], s = sin[angle + i];
        heads_rotate_back(dy[at + i], dy[at + i + half], c, s, i, half, interleaved, dx + at);
    }
}

// Copies columns of every head: from [heads, from_width] to [heads, to_width], `width` of them, by a token's threads.
DEVICE void heads_copy(const float* from, int from_width, float* to, int to_width, int heads, int width) {
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < heads * width; item += stride) {
        int head = item / width, i = item % width;
        to[(size_t)head * to_width + i] = from[(size_t)head * from_width + i];
    }
}

// MLA: q [n, heads * (nope + rope)], kv [n, heads * (nope + v)], k_rope [n, rope] -> q_out, k_out
// [n, heads * (nope + rope)], v_out [n, heads * v]; rope = 2 * half; every head's key ends with the rotated k_rope.
// Grid (n, ceil(heads * max(nope, v, half) / (4 * threads))), threads 32 to 256.
KERNEL(heads_mla_forward)(const float* q, const float* kv, const float* k_rope, const int* positions, const float* cos,
                          const float* sin, float* q_out, float* k_out, float* v_out, int heads, int nope, int half,
                          int v, int interleaved) {
    int dk = nope + 2 * half, dkv = nope + v;
    size_t t = blockIdx.x, angle = (size_t)positions[t] * half;
    q += t * heads * dk;
    q_out += t * heads * dk;
    k_out += t * heads * dk;
    kv += t * heads * dkv;
    heads_copy(q, dk, q_out, dk, heads, nope);
    heads_copy(kv, dkv, k_out, dk, heads, nope);
    heads_copy(kv + nope, dkv, v_out + t * heads * v, v, heads, v);
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < heads * half; item += stride) {
        int i = item % half;
        size_t at = (size_t)(item / half) * dk + nope;
        float c = cos[angle + i], s = sin[angle + i];
        heads_rotate(q + at, c, s, i, half, interleaved, q_out + at);
        heads_rotate(k_rope + t * 2 * half, c, s, i, half, interleaved, k_out + at);
    }
}

// dxq, dxkv, dxr, shaped as q, kv, k_rope above, from dq, dk, dv, shaped as q_out, k_out, v_out (zeros where no
// gradient arrived). The shared key's gradient is summed over the heads in order.
// Launched as the forward kernel.
KERNEL(heads_mla_backward)(const float* dq, const float* dk, const float* dv, const int* positions, const float* cos,
                           const float* sin, float* dxq, float* dxkv, float* dxr, int heads, int nope, int half, int v,
                           int interleaved) {
    int width = nope + 2 * half, dkv = nope + v;
    size_t t = blockIdx.x, angle = (size_t)positions[t] * half;
    dq += t * heads * width;
    dk += t * heads * width;
    dxq += t * heads * width;
    dxkv += t * heads * dkv;
    heads_copy(dq, width, dxq, width, heads, nope);
    heads_copy(dk, width, dxkv, dkv, heads, nope);
    heads_copy(dv + t * heads * v, v, dxkv + nope, dkv, heads, v);
    int first = blockIdx.y * blockDim.x + threadIdx.x, stride = gridDim.y * blockDim.x;
    for (int item = first; item < heads * half; item += stride) {
        int i = item % half;
        size_t at = (size_t)(item / half) * width + nope;
        float c = cos[angle + i], s = sin[angle + i];
        heads_rotate_back(dq[at + i], dq[at + i + half], c, s, i, half, interleaved, dxq + at);
    }
    for (int i = first; i < half; i += stride) {
        float a = 0.0f, b = 0.0f;
#pragma unroll 8
        for (int head = 0; head < heads; ++head) {
            const float* d = dk + (size_t)head * width + nope;
            a = a + d[i];
            b = b + d[i + half];
        }
        heads_rotate_back(a, b, cos[angle + i], sin[angle + i], i, half, interleaved, dxr + t * 2 * half);
    }
}
