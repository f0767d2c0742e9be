//! Times the matrix product on a few shapes.
use tensor::cpu::gemm::*;
fn main() {
    for (m, k, n) in [
        (512, 512, 512),
        (2048, 2048, 2048),
        (4096, 256, 1024),
        (4096, 256, 8192),
        (4096, 1024, 256),
        (64, 256, 512),
        (16, 512, 512),
        (1, 512, 2048),
        (12, 1024, 512),
    ] {
        let a = vec![0.5f32; m * k];
        let b = vec![0.25f32; n * k];
        let mut panels = vec![0.0; packed_len(n, k)];
        pack_transposed(&b, n, k, k, &mut panels);
        let mut c = vec![0.0; m * n];
        for (name, right, left) in [
            ("packed", Right::packed(&panels, k), Left::rows(&a, k)),
            ("direct", Right::rows(&b, n), Left::rows(&a, k)),
            ("A^T direct", Right::rows(&b, n), Left::transposed(&a, m)),
        ] {
            let p = [Product { a: left, b: right, m, k, n, c: 0 }];
            let mut best = f64::MAX;
            let t0 = std::time::Instant::now();
            while t0.elapsed().as_secs_f64() < 0.25 {
                let t = std::time::Instant::now();
                gemm(&p, &mut c, n, false);
                best = best.min(t.elapsed().as_secs_f64());
            }
            println!("{m}x{k}x{n} {name}: {:.1} GFLOP/s", 2e-9 * (m * k * n) as f64 / best);
        }
    }
}
