//! Routers: affinities by sigmoid (DeepSeek-V3) or softmax (DeepSeek-V2, Qwen3-MoE, OLMoE), selection with a balance bias, group
//! limit, normalised weights.

use crate::buffer::Buf;
use crate::cuda::{Gpu, Ptr, Slab, args};
use crate::memory::{Data, Ints};
use crate::params::{Params, Weight};
use crate::tape::{Tape, Tensor};
use crate::threads::{SharedMut, parallel};

/// Rows of one piece of work.
const ROWS: usize = 64;
/// The most experts a router handles.
pub const MAX_EXPERTS: usize = 512;

/// How logits become affinities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scoring {
    /// Each by itself; a group is as strong as its two best experts together.
    #[default]
    Sigmoid,
    /// Over all experts; a group is as strong as its best expert.
    Softmax,
}

/// How experts are chosen (DeepSeek-V3 report, equations 12 to 16).
#[derive(Clone, Copy, Debug)]
pub struct RouterShape {
    /// Routed experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Groups of experts.
    pub groups: usize,
    /// Groups that a token may use.
    pub top_groups: usize,
    /// Whether the weights are normalised to one.
    pub normalize: bool,
    /// Factor of the weights.
    pub scaling: f32,
    /// How affinities are had.
    pub scoring: Scoring,
}

/// The choice for a batch of tokens.
pub struct Routes {
    /// `[tokens * top_k]`: each token's experts in ascending order.
    pub experts: Ints,
    /// `[tokens, top_k]`: their weights.
    pub weights: Tensor,
    /// Tokens that each expert got.
    pub load: Ints,
    /// One value: the sequence-wise balance loss (report, equations 17 to 20), already in the gradient; 0 if `alpha` is.
    pub balance_loss: Data,
}

/// What the forward pass leaves for the way back.
struct Chosen {
    /// `[tokens, experts]`: the affinities.
    scores: Data,
    experts: Ints,
    /// `[tokens, experts]`: the derivative of the balance loss by each affinity.
    balance: Option<Data>,
}

/// `logits [tokens, experts]`, `bias [experts]`, if any (added for the selection only) → routes. `alpha` weighs the
/// balance loss over `lens`, the lengths of the batch's sequences.
pub fn route(
    tape: &Tape,
    logits: &Tensor,
    bias: Option<Weight>,
    shape: RouterShape,
    lens: &[usize],
    alpha: f32,
) -> Routes {
    let (n, e, k) = (logits.rows(), shape.experts, shape.top_k);
    assert!(
        logits.cols() == e && bias.is_none_or(|b| b.len() == e) && e <= MAX_EXPERTS && k <= e,
        "route: {} logits for {shape:?}",
        logits.cols()
    );
    let open = if shape.groups > 1 { e / shape.groups * shape.top_groups.min(shape.groups) } else { e };
    assert!(
        e.is_multiple_of(shape.groups.max(1)) && k <= open,
        "route: {shape:?} leaves fewer than {k} experts to choose from"
    );
    assert!(
        alpha <= 0.0 || lens.iter().sum::<usize>() == n,
        "route: sequences do not cover the batch of {n}"
    );
    let gpu = tape.gpu();
    let (mut scores, mut weights) = (Data::new(gpu, n * e), Data::new(gpu, n * k));
    let (experts, load) = match gpu {
        Some(gpu) => {
            let bias = bias.map_or(Ptr::NULL, |bias| tape.params().on(gpu, bias));
            choose_cuda(gpu, logits, bias, &shape, scores.on_mut(gpu), weights.on_mut(gpu))
        }
        None => {
            let none = vec![0.0; e];
            let bias = bias.map_or(&none[..], |bias| tape.params().get(bias));
            choose_cpu(logits, bias, &shape, scores.host_mut(), weights.host_mut())
        }
    };
    let weights = tape.output(weights, n, k);
    let balance = (alpha > 0.0).then(|| {
        // Equation 18 counts the greatest affinities, whatever bias and groups made of the choice.
        let plain = RouterShape { groups: 1, top_groups: 1, ..shape };
        let (mut affinities, mut unused) = (Data::new(gpu, n * e), Data::new(gpu, n * k));
        match gpu {
            Some(gpu) => {
                let (affinities, unused) = (affinities.on_mut(gpu), unused.on_mut(gpu));
                let (greatest, _) = choose_cuda(gpu, logits, Ptr::NULL, &plain, affinities, unused);
                balance_cuda(gpu, &scores, &greatest, &shape, lens, alpha)
            }
            None => {
                let (affinities, unused) = (affinities.host_mut(), unused.host_mut());
                let none = vec![0.0; e];
                let (greatest, _) = choose_cpu(logits, &none, &plain, affinities, unused);
                let (loss, gradients) = balance_gradient(scores.host(), greatest.host(), &shape, lens, alpha);
                (Buf::copy_of(&[loss]).into(), Buf::copy_of(&gradients).into())
            }
        }
    });
    let (balance_loss, balance) = balance.unzip();
    if let (Some(gl), Some(gw)) = (logits.grad.clone(), weights.grad.clone()) {
        let chosen = Chosen { scores, experts: experts.clone(), balance };
        tape.record(move |params| gl.give(backward(params.gpu(), &chosen, gw.take().as_deref(), &shape, n)));
    }
    let balance_loss = balance_loss.unwrap_or_else(|| Buf::zeros(1).into());
    Routes { experts, weights, load, balance_loss }
}

/// Chooses and weighs; gives the choices and the load.
fn choose_cpu(
    logits: &Tensor,
    bias: &[f32],
    shape: &RouterShape,
    scores: &mut [f32],
    weights: &mut [f32],
) -> (Ints, Ints) {
    let (n, e, k) = (logits.rows(), shape.experts, shape.top_k);
    let logits = logits.host();
    let mut experts = vec![0u32; n * k];
    {
        let (s, w, x) = (SharedMut::new(scores), SharedMut::new(weights), SharedMut::new(&mut experts));
        parallel(n.div_ceil(ROWS), |i| {
            for t in i * ROWS..n.min((i + 1) * ROWS) {
                // SAFETY: each row is visited once.
                let (s, w, x) = unsafe { (s.slice(t * e, e), w.slice(t * k, k), x.slice(t * k, k)) };
                match shape.scoring {
                    Scoring::Sigmoid => sigmoid_row(&logits[t * e..][..e], s),
                    Scoring::Softmax => softmax_row(&logits[t * e..][..e], s),
                }
                select(s, bias, shape, x);
                for (w, &x) in w.iter_mut().zip(x.iter()) {
                    *w = s[x as usize];
                }
                let total: f32 = if shape.normalize { w.iter().sum::<f32>() + 1e-20 } else { 1.0 };
                w.iter_mut().for_each(|w| *w = *w / total * shape.scaling);
            }
        });
    }
    let mut load = vec![0u32; e];
    experts.iter().for_each(|&x| load[x as usize] += 1);
    (experts.into(), load.into())
}

/// [`choose_cpu`] on a GPU.
fn choose_cuda(
    gpu: &Gpu,
    logits: &Tensor,
    bias: Ptr,
    shape: &RouterShape,
    scores: &Slab,
    weights: &Slab,
) -> (Ints, Ints) {
    let RouterShape { experts: e, top_k: k, groups, top_groups, normalize, scaling, scoring } = *shape;
    let softmax = scoring == Scoring::Softmax;
    let n = logits.rows();
    let (experts, load) = (gpu.alloc(n * k), gpu.alloc(e));
    let logits = logits.data.on(gpu);
    let args = args![
        logits, bias, scores, &experts, weights, n, e, k, groups, top_groups, normalize, scaling, softmax
    ];
    gpu.launch("router_forward", [n.div_ceil(8), 1, 1], 256, args);
    gpu.launch("router_load", [1, 1, 1], 1024, args![&experts, &load, n * k, e]);
    (Ints::written(experts, n * k), Ints::written(load, e))
}

/// The balance loss and its derivative by each score, on a GPU.
fn balance_cuda(
    gpu: &Gpu,
    scores: &Data,
    greatest: &Ints,
    shape: &RouterShape,
    lens: &[usize],
    alpha: f32,
) -> (Data, Data) {
    let (n, e, k) = (lens.iter().sum::<usize>(), shape.experts, shape.top_k);
    let mut first = 0;
    let sequences: Vec<u32> = lens
        .iter()
        .flat_map(|&len| {
            let at = first;
            first += len;
            [at as u32, len as u32]
        })
        .collect();
    let longest = lens.iter().max().copied().unwrap_or(0);
    let (sequences, frequency, terms) =
        (gpu.upload_ints(&sequences), gpu.alloc(lens.len() * e), gpu.alloc(n));
    let (mut loss, mut gradients) = (Data::new(Some(gpu), 1), Data::new(Some(gpu), n * e));
    let args = args![greatest.on(gpu), &sequences, &frequency, e, k];
    gpu.launch("router_frequency", [lens.len(), 1, 1], 1024, args);
    let args = args![scores.on(gpu), &sequences, &frequency, gradients.on_mut(gpu), &terms, n, e, alpha];
    gpu.launch("router_balance", [lens.len(), longest.div_ceil(128).max(1), 1], 128, args);
    gpu.launch("router_loss", [1, 1, 1], 256, args![&terms, loss.on_mut(gpu), n]);
    (loss, gradients)
}

/// The gradient of the logits, from that of the weights, if any reached them, and of the balance loss.
fn backward(gpu: Option<&Gpu>, chosen: &Chosen, dw: Option<&Data>, shape: &RouterShape, n: usize) -> Data {
    let RouterShape { experts: e, top_k: k, normalize, scaling, .. } = *shape;
    let Chosen { scores, experts, balance } = chosen;
    let mut dlogits = Data::zeros(gpu, n * e);
    if let Some(gpu) = gpu {
        let place = |d: Option<&Data>| d.map_or(Ptr::NULL, |d| d.on(gpu).at(0));
        let (dw, balance) = (place(dw), place(balance.as_ref()));
        let (scores, experts, to) = (scores.on(gpu), experts.on(gpu), dlogits.on_mut(gpu));
        let softmax = shape.scoring == Scoring::Softmax;
        let args = args![scores, experts, dw, balance, to, n, e, k, normalize, scaling, softmax];
        gpu.launch("router_backward", [n.div_ceil(8), 1, 1], 256, args);
        return dlogits;
    }
    let (scores, experts) = (scores.host(), experts.host());
    let (dw, balance) = (dw.map(Data::host), balance.as_ref().map(Data::host));
    let out = SharedMut::new(dlogits.host_mut());
    parallel(n.div_ceil(ROWS), |i| {
        for t in i * ROWS..n.min((i + 1) * ROWS) {
            // SAFETY: each row is visited once.
            let d = unsafe { out.slice(t * e, e) };
            let s = &scores[t * e..][..e];
            if let Some(dw) = dw {
                weight_gradients(s, &experts[t * k..][..k], &dw[t * k..][..k], shape, d);
            }
            if let Some(gradients) = balance {
                d.iter_mut().zip(&gradients[t * e..]).for_each(|(d, b)| *d += b);
            }
            match shape.scoring {
                Scoring::Sigmoid => d.iter_mut().zip(s).for_each(|(d, s)| *d *= s * (1.0 - s)),
                Scoring::Softmax => {
                    let mean: f32 = d.iter().zip(s).map(|(d, s)| d * s).sum();
                    d.iter_mut().zip(s).for_each(|(d, s)| *d = s * (*d - mean));
                }
            }
        }
    });
    dlogits
}

/// Moves a router's balance bias by `rate` against each expert's error of load (report, section 2.1.2).
pub fn balance_bias(params: &mut Params, bias: Weight, load: &[u32], rate: f32) {
    assert_eq!(bias.len(), load.len(), "balance_bias: experts differ in number");
    if let Some(gpu) = params.gpu().cloned() {
        let load = gpu.upload_ints(load);
        let e = bias.len();
        let place = params.data_and_grads_mut().0.on_mut(&gpu).at(bias.offset);
        return gpu.launch(
            "optimizer_router_bias",
            [e.div_ceil(128), 1, 1],
            128,
            args![place, &load, e, rate],
        );
    }
    let mean = load.iter().sum::<u32>() as f32 / load.len() as f32;
    let bias = &mut params.data_mut()[bias.offset..bias.offset + bias.len()];
    for (b, &load) in bias.iter_mut().zip(load) {
        let error = mean - load as f32;
        *b += if error == 0.0 { 0.0 } else { rate * error.signum() };
    }
}

crate::cpu::simd::kernel! {
    fn sigmoid_row<S>(x: &[f32], y: &mut [f32]) {
        use crate::cpu::simd::LANES;
        let mut i = 0;
        while i < x.len() {
            let n = LANES.min(x.len() - i);
            let v = crate::cpu::math::sigmoid::<S>(S::load_partial(x.as_ptr().add(i), n));
            S::store_partial(y.as_mut_ptr().add(i), n, v);
            i += LANES;
        }
    }
}

/// `exp(x - max) / Σ`, summed in order.
fn softmax_row(x: &[f32], y: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    y.iter_mut().zip(x).for_each(|(y, x)| *y = x - top);
    exp_row(y);
    let sum: f32 = y.iter().sum();
    y.iter_mut().for_each(|y| *y /= sum);
}

crate::cpu::simd::kernel! {
    fn exp_row<S>(x: &mut [f32]) {
        use crate::cpu::simd::LANES;
        let mut i = 0;
        while i < x.len() {
            let n = LANES.min(x.len() - i);
            let v = crate::cpu::math::exp::<S>(S::load_partial(x.as_ptr().add(i), n));
            S::store_partial(x.as_mut_ptr().add(i), n, v);
            i += LANES;
        }
    }
}

/// The chosen experts, ascending. Ties go to the lower index.
fn select(scores: &[f32], bias: &[f32], shape: &RouterShape, chosen: &mut [u32]) {
    let mut biased = [f32::NEG_INFINITY; MAX_EXPERTS];
    for (i, (s, b)) in scores.iter().zip(bias).enumerate() {
        biased[i] = s + b;
    }
    if shape.groups > 1 && shape.top_groups < shape.groups {
        let per = shape.experts / shape.groups;
        let mut strength = [f32::NEG_INFINITY; MAX_EXPERTS];
        for g in 0..shape.groups {
            let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for &b in &biased[g * per..(g + 1) * per] {
                if b > first {
                    (first, second) = (b, first);
                } else if b > second {
                    second = b;
                }
            }
            let alone = per == 1 || shape.scoring == Scoring::Softmax;
            strength[g] = if alone { first } else { first + second };
        }
        let mut keep = [false; MAX_EXPERTS];
        for _ in 0..shape.top_groups {
            let g = best(&strength[..shape.groups]);
            keep[g] = true;
            strength[g] = f32::NEG_INFINITY;
        }
        for i in 0..shape.experts {
            if !keep[i / per] {
                biased[i] = f32::NEG_INFINITY;
            }
        }
    }
    for c in chosen.iter_mut() {
        let i = best(&biased[..shape.experts]);
        *c = i as u32;
        biased[i] = f32::NEG_INFINITY;
    }
    chosen.sort_unstable();
}

fn best(x: &[f32]) -> usize {
    let mut at = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[at] {
            at = i;
        }
    }
    at
}

/// Adds d loss / d score through the (normalised) weights of one token.
fn weight_gradients(s: &[f32], experts: &[u32], dw: &[f32], shape: &RouterShape, d: &mut [f32]) {
    if !shape.normalize {
        for (&x, &g) in experts.iter().zip(dw) {
            d[x as usize] += g * shape.scaling;
        }
        return;
    }
    let total: f32 = experts.iter().map(|&x| s[x as usize]).sum::<f32>() + 1e-20;
    let inner: f32 = experts.iter().zip(dw).map(|(&x, g)| g * s[x as usize]).sum::<f32>() / total;
    for (&x, &g) in experts.iter().zip(dw) {
        d[x as usize] += shape.scaling * (g - inner) / total;
    }
}

/// The balance loss `α Σ_i f_i P_i`, averaged over tokens, and its gradient by each score, from the scores and each token's
/// `greatest` ones, `[tokens * top_k]`.
fn balance_gradient(
    scores: &[f32],
    greatest: &[u32],
    shape: &RouterShape,
    lens: &[usize],
    alpha: f32,
) -> (f32, Vec<f32>) {
    let (e, k) = (shape.experts, shape.top_k);
    let tokens: usize = lens.iter().sum();
    let mut gradients = vec![0.0; scores.len()];
    let mut loss = 0.0;
    let mut start = 0;
    for &len in lens {
        let rows = &scores[start * e..(start + len) * e];
        let mut f = vec![0.0f32; e];
        greatest[start * k..(start + len) * k].iter().for_each(|&x| f[x as usize] += 1.0);
        f.iter_mut().for_each(|f| *f *= e as f32 / (k * len) as f32);
        let share = alpha / tokens as f32;
        for (t, row) in rows.chunks_exact(e).enumerate() {
            let total: f32 = row.iter().sum();
            let weighted: f32 = row.iter().zip(&f).map(|(s, f)| s * f).sum::<f32>() / total;
            loss += share * weighted;
            for i in 0..e {
                gradients[(start + t) * e + i] = share * (f[i] - weighted) / total;
            }
        }
        start += len;
    }
    (loss, gradients)
}
