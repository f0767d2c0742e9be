// Rows of a table by token id. The way back walks the tokens of each id in order, one block (or several, by columns)
// for an id, so that no two blocks add to the same row.

// out [n, h], row i = table [vocab, h], row ids[i].
// Grid (n, ceil(h / (4 * threads))), threads 32 to 256.
KERNEL(embedding_forward)(const float* table, const int* ids, float* out, int h) {
    copy_row(table + (size_t)ids[blockIdx.x] * h, out + (size_t)blockIdx.x * h, h);
}

// grad [vocab, h], row ids[t] += dy [n, h], row t, for t in order. `order` [n] lists the tokens by id, equal ids in
// their order; run r of equal ids is order[first[r]] .. order[first[r + 1]].
// Grid (runs, ceil(h / threads)), threads 32 to 128.
KERNEL(embedding_backward)(const float* dy, const int* ids, const int* order, const int* first, float* grad, int h) {
    int column = blockIdx.y * blockDim.x + threadIdx.x, from = first[blockIdx.x], to = first[blockIdx.x + 1];
    if (column >= h || from >= to) return;
    float* row = grad + (size_t)ids[order[from]] * h;
    float sum = row[column];
#pragma unroll 16
    for (int i = from; i < to; ++i) sum = sum + dy[(size_t)order[i] * h + column];
    row[column] = sum;
}
