//! The micro-kernel: a tile of outputs that stay in registers over many steps of k.

use super::{PANEL, Right};
use crate::cpu::simd::{LANES, Simd};

/// Strips, at most, during which the next panel is asked for.
const ASKING_STRIPS: usize = 8;

/// What a micro-kernel asks for while it runs, so that the next ones need not wait for memory. Little at a time: a core has some
/// sixteen lines under way, and what this one reads must not queue behind them.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Within the next panel of the right factor, if any, and how much further with each step of k.
    b: *const f32,
    b_step: usize,
    /// The outputs of the next tile, if any.
    pub c: *const f32,
}

impl Ahead {
    pub const NOTHING: Ahead = Ahead { b: std::ptr::null(), b_step: 0, c: std::ptr::null() };

    /// Shares a panel of `kc` steps among a panel's last strips, of which this is `strip` of `strips`.
    pub fn ask_panel(
        &mut self,
        panel: *const f32,
        k_stride: usize,
        kc: usize,
        (strips, strip): (usize, usize),
    ) {
        let contiguous = k_stride == PANEL;
        let parts = strips.min(if contiguous { ASKING_STRIPS } else { PANEL / LANES });
        let Some(part) = (strip + parts).checked_sub(strips) else { return };
        let share = PANEL.div_ceil(parts);
        (self.b, self.b_step) = match contiguous {
            true => (panel.wrapping_add(part * share * kc), share),
            false => (panel.wrapping_add(part * share), k_stride),
        };
    }
}

/// What a micro-kernel works on: `rows x cols` outputs, `kc` steps.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub kc: usize,
    pub a: *const f32,
    /// Distance in `a` between rows and between steps of k.
    pub a_rs: usize,
    pub a_ks: usize,
    pub b: *const f32,
    pub right: Right<'a>,
    pub c: *mut f32,
    pub ldc: usize,
    pub cols: usize,
    /// Whether the sums start from what is in `c`.
    pub load: bool,
}

impl Tile<'_> {
    /// Computes the tile with `rows <= 12` rows (more than `S::MR` only costs registers).
    ///
    /// # Safety
    /// All pointers are valid for the extents given, and the machine has `S`.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(&self, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.run_asking::<S>(rows, Ahead::NOTHING) }
    }

    /// The same, and meanwhile asks for what comes next.
    #[inline(always)]
    pub(super) unsafe fn run_asking<S: Simd>(&self, rows: usize, ahead: Ahead) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut n = 0;
            while n < self.cols {
                let left = self.cols - n;
                // With few rows a tile is wider, so that its chains of sums still hide each other's latency.
                if rows == 1 && left >= 4 * PANEL && S::NV == 2 {
                    self.micro::<S, 1, 8>(n, ahead);
                    n += 4 * PANEL;
                } else if rows <= 3 && left >= 2 * PANEL && S::NV == 2 {
                    match rows {
                        1 => self.micro::<S, 1, 4>(n, ahead),
                        2 => self.micro::<S, 2, 4>(n, ahead),
                        _ => self.micro::<S, 3, 4>(n, ahead),
                    }
                    n += 2 * PANEL;
                } else if rows == 1 && left >= 2 * PANEL && S::NV == 1 {
                    self.micro::<S, 1, 4>(n, ahead);
                    n += 2 * PANEL;
                } else if rows <= 2 && left >= PANEL && S::NV == 1 {
                    if rows == 1 {
                        self.micro::<S, 1, 2>(n, ahead)
                    } else {
                        self.micro::<S, 2, 2>(n, ahead)
                    }
                    n += PANEL;
                } else if left >= PANEL && S::NV == 2 {
                    self.rows::<S, 2>(rows, n, ahead);
                    n += PANEL;
                } else if left >= LANES {
                    self.rows::<S, 1>(rows, n, ahead);
                    n += LANES;
                } else {
                    self.partial::<S>(rows, n, left);
                    n += left;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rows<S: Simd, const W: usize>(&self, rows: usize, n: usize, ahead: Ahead) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => self.micro::<S, 1, W>(n, ahead),
                2 => self.micro::<S, 2, W>(n, ahead),
                3 => self.micro::<S, 3, W>(n, ahead),
                4 => self.micro::<S, 4, W>(n, ahead),
                5 => self.micro::<S, 5, W>(n, ahead),
                6 => self.micro::<S, 6, W>(n, ahead),
                7 => self.micro::<S, 7, W>(n, ahead),
                8 => self.micro::<S, 8, W>(n, ahead),
                9 => self.micro::<S, 9, W>(n, ahead),
                10 => self.micro::<S, 10, W>(n, ahead),
                11 => self.micro::<S, 11, W>(n, ahead),
                _ => self.micro::<S, 12, W>(n, ahead),
            }
        }
    }

    #[inline(always)]
    fn vector(&self, n: usize) -> usize {
        (n / PANEL) * self.right.panel_stride + n % PANEL
    }

    /// `R` rows by `W` vectors, columns `n..`.
    #[inline(always)]
    unsafe fn micro<S: Simd, const R: usize, const W: usize>(&self, n: usize, ahead: Ahead) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[S::splat(0.0); W]; R];
            if self.load {
                for i in 0..R {
                    for w in 0..W {
                        acc[i][w] = S::load(self.c.add(i * self.ldc + n + w * LANES));
                    }
                }
            }
            let mut at = [std::ptr::null::<f32>(); W];
            for w in 0..W {
                at[w] = self.b.wrapping_add(self.vector(n + w * LANES));
            }
            let mut a = self.a;
            // A place that exists: to ask for none costs a walk through the page table.
            let mut ahead_b = if ahead.b.is_null() { self.b } else { ahead.b };
            let mut ahead_c = ahead.c.wrapping_add(n);
            let parts = if ahead.c.is_null() || self.kc < 4 * R { 1 } else { R };
            let each = self.kc / parts;
            for part in 0..parts {
                if parts > 1 {
                    for w in 0..W {
                        S::prefetch_second(ahead_c.wrapping_add(w * LANES).cast());
                    }
                    ahead_c = ahead_c.wrapping_add(self.ldc);
                }
                let steps = if part + 1 == parts { self.kc - part * each } else { each };
                for _ in 0..steps {
                    S::prefetch_second(ahead_b.cast());
                    ahead_b = ahead_b.wrapping_add(ahead.b_step);
                    let mut b = [S::splat(0.0); W];
                    for w in 0..W {
                        b[w] = S::load(at[w]);
                        // Wrapping, because the step behind the last one may leave the matrix.
                        at[w] = at[w].wrapping_add(self.right.k_stride);
                    }
                    for i in 0..R {
                        let x = S::splat(*a.add(i * self.a_rs));
                        for w in 0..W {
                            acc[i][w] = S::fma(x, b[w], acc[i][w]);
                        }
                    }
                    a = a.wrapping_add(self.a_ks);
                }
            }
            for i in 0..R {
                for w in 0..W {
                    S::store(self.c.add(i * self.ldc + n + w * LANES), acc[i][w]);
                }
            }
        }
    }

    /// The last, narrow columns: `cols < LANES`.
    #[inline(always)]
    unsafe fn partial<S: Simd>(&self, rows: usize, n: usize, cols: usize) {
        // SAFETY: the caller's promise; partial loads and stores touch `cols` values only.
        unsafe {
            for i in 0..rows {
                let c = self.c.add(i * self.ldc + n);
                let mut acc = if self.load { S::load_partial(c, cols) } else { S::splat(0.0) };
                let b = self.b.wrapping_add(self.vector(n));
                for k in 0..self.kc {
                    let v = S::load_partial(b.add(k * self.right.k_stride), cols);
                    acc = S::fma(S::splat(*self.a.add(i * self.a_rs + k * self.a_ks)), v, acc);
                }
                S::store_partial(c, cols, acc);
            }
        }
    }
}
