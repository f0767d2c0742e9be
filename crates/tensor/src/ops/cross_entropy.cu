// The losses on rows of logits. A row has a block; see `exp_sums` in the prelude for how it is summed.

// From logits [rows, vocab] and targets [rows]: logprobs and entropies [rows] of the logits times scale. Unless weights
// [rows] is null, the logits become the gradient of the sum of weights * -logprobs.
// Grid rows, HEAD_THREADS (512) threads.
KERNEL_BOUNDED(cross_entropy_rows, HEAD_THREADS, 2)(float* logits, const int* targets, const float* weights,
                                                    float* logprobs, float* entropies, int vocab, float scale) {
    float* row = logits + (size_t)blockIdx.x * vocab;
    int target = targets[blockIdx.x];
    Normalizer z = normalizer(row, vocab, scale);
    if (threadIdx.x == 0) {
        logprobs[blockIdx.x] = row[target] * scale - z.lse;
        entropies[blockIdx.x] = z.entropy;
    }
    if (!weights) return;
    float weight = weights[blockIdx.x] * scale;
    __syncthreads(); // the target's logit has been read
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += HEAD_THREADS) {
        float d = weight == 0.0f ? 0.0f : weight * exact_exp(row[i] * scale - z.lse);
        row[i] = i == target && weight != 0.0f ? d - weight : d;
    }
}

// kl [rows] = KL(teacher || student) from the logits of both, [rows, vocab]; the student's become the gradient of
// the sum of weights [rows] * kl.
// Grid rows, HEAD_THREADS (512) threads.
KERNEL_BOUNDED(cross_entropy_distill, HEAD_THREADS, 2)(float* student, const float* teacher, const float* weights,
                                                       float* kl, int vocab) {
    student += (size_t)blockIdx.x * vocab;
    teacher += (size_t)blockIdx.x * vocab;
    float weight = weights[blockIdx.x];
    Normalizer s = normalizer(student, vocab), t = normalizer(teacher, vocab);
    // Σ p (student's logits), p the teacher's probabilities. A dot product always ends with a partial vector,
    // even an empty one.
    float dot = exp_sums(teacher, student, t.lse, vocab, vocab / 16 * 16 + 16).b;
    if (threadIdx.x == 0) kl[blockIdx.x] = -t.entropy - dot + s.lse;
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += HEAD_THREADS) {
        float p = exact_exp(teacher[i] - t.lse), q = weight * exact_exp(student[i] - s.lse);
        student[i] = fmaf(-weight, p, q);
    }
}
