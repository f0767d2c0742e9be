//! `bench`: how fast this machine runs the engine, on random weights from a Hugging Face config or on a model's own.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::{ArgGroup, Args, Subcommand};
use engine::{Engine, Request, Sampling};
use model::device::place_of;
use model::inspect::inspect;
use model::{AdapterConfig, HeldAs, Model, ModelConfig, Use};
use serde_json::{Value, json};
use tensor::cpu::gemm::{Left, Product, Right, gemm, pack_transposed, packed_len};
use tensor::operations::{self, Counts};
use tensor::{Buf, Gpu, Math, Params, Rng, Tape, Tensor, ops};
use train::memory::{TRAINING_COPIES, available_bytes, training_bytes};
use train::objective::{Clip, Norm, ObjectiveKind, kl::KlKind, objective};
use train::optim::{Optimizer, OptimizerSettings};
use train::policy::{PASS_TOKENS, PolicySettings, Prompted, Sampled, policy_step};
use train::step::{Batch, StepOptions, train_step};
use train::team::Team;

use super::ranges;
use crate::model_files::check_model;
use crate::output::{Output, peak_memory_bytes, tell};

const EXAMPLES: &str = "\
Examples:
  shoestring bench gemm
  shoestring bench train --config bench/moe.json --batch 16 --seq 256 --steps 5 --json
  shoestring bench generate --config my-model --prompts 64 --prompt-len 64 --max-new 64
  shoestring bench generate --model SmolLM2-135M-Instruct.Q4_1.gguf --prompts 1 --prompt-len 32
  shoestring bench grpo --model SmolLM2-135M-Instruct.Q4_1.gguf --lora 16 --prompts 4 --json

With --config models have random weights, and their config.json alone is read; with --model they have their own, held as stored where
nothing trains them. --lora trains adapters of a rank in place of all weights (`generate` samples through them). `ceiling_share` is the share of the machine's matrix product
that the counted operations reached. Close other programs, and compare what was measured in the same minutes.";

/// What to measure.
#[derive(Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum Bench {
    /// The matrix product on several shapes: the machine's ceiling.
    Gemm {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Optimizer steps (AdamW) on random tokens.
    Train {
        #[command(flatten)]
        model: ModelArgs,
        /// Sequences per step.
        #[arg(long, default_value_t = 16, value_parser = ranges::count)]
        batch: usize,
        /// Tokens per sequence.
        #[arg(long, default_value_t = 256, value_parser = ranges::count)]
        seq: usize,
        /// Steps to time (after two to warm up).
        #[arg(long, default_value_t = 5, value_parser = ranges::count)]
        steps: usize,
    },
    /// Sampling from random prompts.
    Generate {
        #[command(flatten)]
        model: ModelArgs,
        /// Prompts.
        #[arg(long, default_value_t = 64, value_parser = ranges::count)]
        prompts: usize,
        /// Tokens per prompt.
        #[arg(long, default_value_t = 64, value_parser = ranges::count)]
        prompt_len: usize,
        /// Tokens to generate for each.
        #[arg(long, default_value_t = 64, value_parser = ranges::count)]
        max_new: usize,
    },
    /// A whole GRPO step: sampling, random rewards, one policy update.
    Grpo {
        #[command(flatten)]
        model: ModelArgs,
        /// Prompts per step.
        #[arg(long, default_value_t = 8, value_parser = ranges::count)]
        prompts: usize,
        /// Completions per prompt.
        #[arg(long, default_value_t = 8, value_parser = ranges::count)]
        group: usize,
        /// Tokens per completion at most.
        #[arg(long, default_value_t = 96, value_parser = ranges::count)]
        max_new: usize,
        /// Tokens per prompt.
        #[arg(long, default_value_t = 32, value_parser = ranges::count)]
        prompt_len: usize,
        /// Steps to time (after one to warm up).
        #[arg(long, default_value_t = 3, value_parser = ranges::count)]
        steps: usize,
    },
}

/// The model to make.
#[derive(Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub struct ModelArgs {
    /// A Hugging Face config.json, or a folder with one: random weights.
    #[arg(long, group = "which")]
    config: Option<PathBuf>,
    /// A model folder or a GGUF file: its own weights.
    #[arg(long, group = "which")]
    model: Option<PathBuf>,
    /// Adapters of this rank beside frozen weights.
    #[arg(long, value_name = "RANK", value_parser = ranges::count)]
    lora: Option<usize>,
    /// On a GPU: show how long each kernel took (on stderr; the whole takes a little longer).
    #[arg(long)]
    profile: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl ModelArgs {
    fn path(&self) -> &Path {
        self.model.as_ref().or(self.config.as_ref()).expect("one of the two is required")
    }

    /// How a model of its own weights is read.
    fn wanted(&self, trains: bool) -> Use {
        match self.lora {
            Some(rank) => {
                let alpha = 2.0 * rank as f64;
                Use::Adapt(HeldAs::Stored, AdapterConfig { rank, alpha, ..AdapterConfig::default() })
            }
            None if trains => Use::Train,
            None => Use::Infer(HeldAs::Stored),
        }
    }
}

/// Begins to measure kernels if that is wanted.
fn begin_profile(args: &ModelArgs) {
    if let Some(gpu) = tensor::device(0).filter(|_| args.profile) {
        gpu.profile();
    }
}

/// Shows what was measured.
fn end_profile(args: &ModelArgs) {
    let Some(gpu) = tensor::device(0).filter(|_| args.profile) else { return };
    let kernels = gpu.profiled();
    let all: f64 = kernels.iter().map(|k| k.2).sum();
    tell(&format!("{:>9.2} ms in kernels", all));
    for (kernel, launches, ms) in kernels.iter().take(30) {
        tell(&format!("{ms:>9.2} ms {:>5.1} % {launches:>7} x {kernel}", 100.0 * ms / all));
    }
}

/// Runs a benchmark.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Gemm { json } => {
            let gpu = tensor::device(0);
            let larger: &[_] = if gpu.is_some() { &LARGE_SHAPES } else { &[] };
            let shapes: Vec<Value> = SHAPES
                .iter()
                .chain(larger)
                .map(|&(m, k, n)| json!({"m": m, "k": k, "n": n, "gflops": gflops(gpu.as_ref(), m, k, n, 0.4)}))
                .collect();
            let math = math_name(gpu.as_ref());
            let out = json!({"device": device_name(gpu.as_ref()), "math": math, "threads": tensor::threads::threads(), "shapes": shapes});
            Output::new(*json).table(
                &format!("matrix product, {math}, {}", device_name(gpu.as_ref())),
                &out,
                "shapes",
            )
        }
        Bench::Train { model, batch, seq, steps } => bench_train(model, *batch, *seq, *steps),
        Bench::Generate { model, prompts, prompt_len, max_new } => {
            bench_generate(model, *prompts, *prompt_len, *max_new)
        }
        Bench::Grpo { model, prompts, group, max_new, prompt_len, steps } => {
            bench_grpo(model, (*prompts, *group), *prompt_len, *max_new, *steps)
        }
    }
}

/// Rows, inner length, columns: large products, the shapes of small models, and few rows.
const SHAPES: [(usize, usize, usize); 8] = [
    (512, 512, 512),
    (2048, 2048, 2048),
    (4096, 256, 1024),
    (4096, 1024, 256),
    (4096, 256, 8192),
    (64, 256, 512),
    (16, 512, 512),
    (1, 1024, 4096),
];

/// What a GPU takes to be busy.
const LARGE_SHAPES: [(usize, usize, usize); 3] = [(4096, 1024, 4096), (8192, 1024, 3072), (8192, 8192, 8192)];

/// The GPU, or the processor's instruction set.
fn device_name(gpu: Option<&Gpu>) -> String {
    gpu.map_or_else(|| format!("{:?}", tensor::cpu::simd::isa()), |gpu| gpu.info().name.clone())
}

/// How the device calculates.
fn math_name(gpu: Option<&Gpu>) -> &'static str {
    match gpu.map(Gpu::math) {
        None | Some(Math::Exact) => "exact",
        Some(Math::Fast) => "fast",
    }
}

/// Products on the GPU, many in a row, as the best round within about `seconds` did them.
fn gflops_on(gpu: &Gpu, m: usize, k: usize, n: usize, seconds: f64) -> f64 {
    let mut rng = Rng::new(1);
    let mut params = Params::new([("w".to_owned(), vec![n, k], true)]);
    params.data_mut().iter_mut().for_each(|x| *x = rng.uniform() - 0.5);
    params.move_to(Some(gpu));
    let mut x = Buf::new(m * k);
    x.iter_mut().for_each(|x| *x = rng.uniform() - 0.5);
    let (tape, x, w) = (Tape::inference(&params), Tensor::constant(x, m, k), params.weight("w"));
    // The first one looks for the fastest way.
    drop(ops::linear(&tape, &x, w, None));
    let (start, mut best) = (Instant::now(), f64::MAX);
    let rounds = (5e10 / (m * k * n) as f64).clamp(1.0, 20.0) as usize;
    while best == f64::MAX || start.elapsed().as_secs_f64() < seconds {
        gpu.synchronize();
        let t = Instant::now();
        (0..rounds).for_each(|_| drop(ops::linear(&tape, &x, w, None)));
        gpu.synchronize();
        best = best.min(t.elapsed().as_secs_f64() / rounds as f64);
    }
    2e-9 * (m * k * n) as f64 / best
}

/// The best of repeated products within about `seconds`, with packed weights.
fn gflops(gpu: Option<&Gpu>, m: usize, k: usize, n: usize, seconds: f64) -> f64 {
    if let Some(gpu) = gpu {
        return gflops_on(gpu, m, k, n, seconds);
    }
    let mut rng = Rng::new(1);
    let mut fill = |len: usize| {
        let mut b = Buf::new(len);
        b.iter_mut().for_each(|x| *x = rng.uniform() - 0.5);
        b
    };
    let (a, w) = (fill(m * k), fill(n * k));
    let mut panels = Buf::new(packed_len(n, k));
    pack_transposed(&w, n, k, k, &mut panels);
    let mut c = Buf::new(m * n);
    let product = [Product { a: Left::rows(&a, k), b: Right::packed(&panels, k), m, k, n, c: 0 }];
    let (start, mut best) = (Instant::now(), f64::MAX);
    while best == f64::MAX || start.elapsed().as_secs_f64() < seconds {
        let t = Instant::now();
        gemm(&product, &mut c, n, false);
        best = best.min(t.elapsed().as_secs_f64());
    }
    2e-9 * (m * k * n) as f64 / best
}

/// The ceiling in operations per second of the device that a model of so many parameters runs on: the best of two large
/// shapes, on a GPU one.
pub fn ceiling(parameters: usize) -> f64 {
    ceiling_on(tensor::device(parameters).as_ref())
}

fn ceiling_on(gpu: Option<&Gpu>) -> f64 {
    1e9 * match gpu {
        Some(gpu) => {
            let side = (32 * gpu.info().multiprocessors as usize).clamp(64, 4096);
            gflops(Some(gpu), side, side, side, 0.2)
        }
        None => gflops(None, 1024, 512, 1024, 0.3).max(gflops(None, 4096, 256, 1024, 0.3)),
    }
}

/// A random model whose optimizer state (`copies` of the weights), `trained` tokens of activations and `cached` tokens
/// of keys and values fit this machine.
fn load(args: &ModelArgs, copies: usize, trained: usize, cached: usize) -> Result<Model> {
    if args.profile && tensor::device(0).is_none() {
        bail!("--profile measures the kernels of a GPU: name one with --device");
    }
    if args.lora.is_some() && args.model.is_none() {
        bail!("--lora trains beside a model's own weights: name one with --model in place of --config");
    }
    let config = match &args.model {
        Some(path) => {
            check_model(path)?;
            model::load::config_of(path)?
        }
        None => ModelConfig::load(args.path())?,
    };
    let place = place_of(&config).map_err(|reason| anyhow!("{}: {reason}", args.path().display()))?;
    // Frozen weights are there once and as panels.
    let copies = if args.lora.is_some() { copies.min(2) } else { copies };
    let sizes = inspect(&config, 1);
    let cache = sizes.kv_cache.expanded_f32 as f64 * cached as f64;
    let need = training_bytes(&config, copies, trained) + cache;
    let free = place.gpu.map(|gpu| gpu.info().memory as f64).or_else(available_bytes);
    if let Some(free) = free.filter(|free| need > *free) {
        let gib = |bytes: f64| bytes / f64::from(1u32 << 30);
        bail!(
            "{} would take about {:.1} GiB of memory, but {:.1} GiB are there: choose a smaller model, or less at a time",
            args.path().display(),
            gib(need),
            gib(free)
        );
    }
    match &args.model {
        Some(path) => {
            let model = Model::open(path, args.wanted(trained > 0))?;
            model.notices().iter().for_each(|text| tell(text));
            Ok(model)
        }
        None => {
            place.notice.iter().for_each(|text| tell(text));
            Ok(Model::random(config, 1))
        }
    }
}

fn random_tokens(rng: &mut Rng, n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|_| rng.below(vocab) as u32).collect()
}

/// What was measured.
struct Took {
    tokens: usize,
    steps: usize,
    seconds: f64,
    counts: Counts,
}

/// Prints the figures that all model benchmarks share.
fn report(title: &str, args: &ModelArgs, gpu: Option<&Gpu>, took: Took, more: Value) -> Result<()> {
    let Took { tokens, steps, seconds, counts } = took;
    let peak = peak_memory_bytes();
    // Before the ceiling is measured, which takes memory too.
    let held = gpu.map(Gpu::held);
    let rate = counts.total() as f64 / seconds;
    let mut out = json!({
        (if args.model.is_some() { "model" } else { "config" }): args.path().display().to_string(),
        "lora": args.lora,
        "device": device_name(gpu),
        "math": math_name(gpu),
        "threads": tensor::threads::threads(),
        "tokens_per_second": tokens as f64 / seconds,
        "seconds_per_step": seconds / steps as f64,
        "operations_per_second": rate,
        "ceiling_share": rate / ceiling_on(gpu),
        "peak_memory_bytes": peak,
        "gpu_memory_bytes": held,
    });
    if let (Some(out), Value::Object(more)) = (out.as_object_mut(), more) {
        out.extend(more);
    }
    Output::new(args.json).object(title, &out)
}

fn bench_train(args: &ModelArgs, batch: usize, seq: usize, steps: usize) -> Result<()> {
    let mut model = load(args, TRAINING_COPIES, batch * seq, 0)?;
    model.reserve_positions(seq);
    let config = OptimizerSettings { learning_rate: 3e-4, ..OptimizerSettings::default() };
    let team = Team::alone();
    let mut optimizer = Optimizer::new(&model, config, &team);
    let mut rng = Rng::new(2);
    let n = batch * seq;
    let vocab = model.config().vocab_size();
    let data = Batch {
        tokens: random_tokens(&mut rng, n, vocab),
        targets: random_tokens(&mut rng, n, vocab),
        weights: vec![1.0; n],
        lens: vec![seq; batch],
    };
    let options = StepOptions { router_bias_rate: 0.001, ..StepOptions::default() };
    for _ in 0..2 {
        train_step(&mut model, &mut optimizer, &team, data.clone(), &options, 1.0);
    }
    begin_profile(args);
    let (start, before) = (Instant::now(), operations::counts());
    let mut loss = 0.0;
    for _ in 0..steps {
        loss = train_step(&mut model, &mut optimizer, &team, data.clone(), &options, 1.0).loss;
    }
    let seconds = start.elapsed().as_secs_f64();
    let counts = operations::counts().since(&before);
    end_profile(args);
    let took = Took { tokens: steps * n, steps, seconds, counts };
    report("training", args, model.params().gpu(), took, json!({"loss": loss}))
}

fn requests(
    rng: &mut Rng,
    model: &Model,
    prompts: usize,
    len: usize,
    max_new: usize,
    samples: usize,
    stop: bool,
) -> Vec<Request> {
    let stop_tokens = if stop { model.config().eos_token_id().to_vec() } else { Vec::new() };
    (0..prompts)
        .map(|i| Request {
            prompt: random_tokens(rng, len, model.config().vocab_size()),
            samples,
            max_new,
            sampling: Sampling::default(),
            stop_tokens: stop_tokens.clone(),
            seed: i as u64,
        })
        .collect()
}

fn bench_generate(args: &ModelArgs, prompts: usize, prompt_len: usize, max_new: usize) -> Result<()> {
    let mut model = load(args, 2, 0, prompts * (prompt_len + max_new))?;
    model.reserve_positions(prompt_len + max_new);
    let mut rng = Rng::new(3);
    let requests = requests(&mut rng, &model, prompts, prompt_len, max_new, 1, false);
    let mut engine = Engine::new(&model, None);
    engine.run(&requests, |_| true)?;
    begin_profile(args);
    let (start, before) = (Instant::now(), operations::counts());
    let done = engine.run(&requests, |_| true)?;
    let seconds = start.elapsed().as_secs_f64();
    end_profile(args);
    let tokens: usize = done.iter().flatten().map(|c| c.token_ids.len()).sum();
    let more = json!({"generated_tokens": tokens, "cache_bytes": engine.cache_bytes()});
    let took = Took { tokens, steps: 1, seconds, counts: operations::counts().since(&before) };
    report("generation", args, model.params().gpu(), took, more)
}

fn bench_grpo(
    args: &ModelArgs,
    (prompts, group): (usize, usize),
    prompt_len: usize,
    max_new: usize,
    steps: usize,
) -> Result<()> {
    let all = prompts * group * (prompt_len + max_new);
    let mut model = load(args, TRAINING_COPIES, all.min(PASS_TOKENS), all)?;
    model.reserve_positions(prompt_len + max_new);
    let config = OptimizerSettings { learning_rate: 1e-6, ..OptimizerSettings::default() };
    let team = Team::alone();
    let mut optimizer = Optimizer::new(&model, config, &team);
    let mut rng = Rng::new(4);
    let (mut start, mut before) = (Instant::now(), operations::counts());
    let (mut tokens, mut completions, mut mismatched) = (0, 0, 0);
    for step in 0..=steps {
        if step == 1 {
            begin_profile(args);
            (start, before, tokens, completions) = (Instant::now(), operations::counts(), 0, 0);
        }
        let requests = requests(&mut rng, &model, prompts, prompt_len, max_new, group, true);
        let results = Engine::new(&model, None).run(&requests, |_| true)?;
        let mut groups: Vec<Vec<Sampled>> = Vec::new();
        for samples in results {
            let rewards: Vec<f32> = samples.iter().map(|_| f32::from(rng.uniform() < 0.5)).collect();
            let advantages = objective(ObjectiveKind::Grpo).advantages(&rewards);
            let sampled = samples.into_iter().zip(advantages).map(|(s, advantage)| Sampled {
                advantage,
                ..Sampled::new(s.token_ids, s.tempered_logprobs)
            });
            groups.push(sampled.collect());
        }
        let sequences = groups.iter().flatten().count();
        let total: usize = groups.iter().flatten().map(|a| a.tokens.len()).sum();
        tokens += total;
        completions += sequences;
        let settings = PolicySettings {
            objective: objective(ObjectiveKind::Grpo),
            clip: Clip { low: 0.2, high: 0.2 },
            kl: KlKind::K3,
            kl_coefficient: 0.0,
            norm: Norm { sequences, tokens: total, mean_tokens: total as f32, max_new },
            temperature: 1.0,
            on_policy: true,
            pass_tokens: PASS_TOKENS,
            options: StepOptions::default(),
        };
        let prompted = requests.iter().zip(&groups);
        let all: Vec<Prompted> = prompted
            .map(|(r, answers)| Prompted { prompt: &r.prompt, answers: answers.iter().collect() })
            .collect();
        mismatched += policy_step(&mut model, &mut optimizer, &team, &all, &settings, 1.0).mismatched;
    }
    let seconds = start.elapsed().as_secs_f64();
    end_profile(args);
    let more = json!({"mean_completion_tokens": tokens as f64 / completions.max(1) as f64, "mismatched_logprobs": mismatched});
    let took = Took { tokens, steps, seconds, counts: operations::counts().since(&before) };
    report("GRPO", args, model.params().gpu(), took, more)
}
