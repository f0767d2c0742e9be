//! `pretrain`: next-token prediction on worked solutions or on the user's text.

use std::path::{Path, PathBuf};

use data::{
    Document, ShardWriter, Shards, Tokenizer, chunk_document, is_held_out, pack, permutation, read_texts_with,
};
use model::inspect::inspect;
use model::{Model, Use};
use serde::{Deserialize, Serialize};
use tasks::Mix;
use tasks::corpus::{Blend, DRILL_SHARE};

use super::conversations::plain_text;
use super::{Earlier, Known, Makes, Stage, StageResult, Work};
use crate::TrainError;
use crate::context::Context;
use crate::finished::{Figures, ModelSize};
use crate::held_out::{HELD_OUT_DOCUMENTS, HeldOut};
use crate::learner::{Learner, Now, StepOutcome, Steps};
use crate::problems::{HELD_OUT_START, ProblemSource};
use crate::run::metrics::{Metrics, keys};
use crate::settings::check::{At, Checked};
use crate::settings::one_table;
use crate::source::{Files, Problems, Source, TaskMix, check_own_mix};
use crate::step::StepOptions;
use crate::training::{Packing, SideLosses, Training};

/// Next-token prediction from random weights (`model`) or from a model that exists (`from`).
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainStage {
    /// How it trains.
    pub training: Training,
    /// How batches are filled.
    pub packing: Packing,
    /// What is learnt on the side.
    pub side: SideLosses,
    /// What is its own.
    pub own: Pretrain,
}

one_table!(PretrainStage { training, packing, side, own });

/// What `pretrain` alone has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrain {
    /// Which of `[models]` to begin with random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// An earlier stage or a model folder to go on from, in place of `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The tokenizer stage, or the folder with a `tokenizer.json`; by default the last tokenizer stage, or
    /// that of `from`.
    pub tokenizer: String,
    /// The text to learn from.
    pub source: Source,
    /// Draws these tasks instead of the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Vec<TaskMix>>,
    /// The share of problems that are answered at once, without thinking.
    pub hurried_share: f64,
    /// The share of documents that are drills, short lists of the facts that worked solutions of the mix use; 0.15 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill_share: Option<f64>,
    /// The share of documents that are questions of the recipe's problems, without solution or answer, each said twice.
    pub question_share: f64,
    /// Tokens to train on in all.
    pub tokens: u64,
    /// Stops after so many tokens, in the midst of the schedule: enough to compare two models; 0 goes to the end.
    pub stop_after_tokens: u64,
    /// The share of the schedule, at its end, over which the router's bias rests.
    pub router_bias_rest: f64,
    /// The MTP layer takes part in one step out of so many: it costs as much as a layer and the head.
    pub mtp_every: u64,
}

impl Default for Pretrain {
    fn default() -> Self {
        Pretrain {
            model: None,
            from: None,
            tokenizer: String::new(),
            source: Source::Problems,
            mix: None,
            hurried_share: 0.0,
            drill_share: None,
            question_share: 0.0,
            tokens: 5_000_000,
            stop_after_tokens: 0,
            router_bias_rest: 0.1,
            mtp_every: 1,
        }
    }
}

impl Pretrain {
    /// Tokens that the stage trains on before it ends.
    fn trained_tokens(&self) -> u64 {
        if self.stop_after_tokens == 0 { self.tokens } else { self.stop_after_tokens }
    }

    fn blend(&self) -> Blend {
        let drills = self.drill_share.unwrap_or(DRILL_SHARE);
        Blend { drills, questions: self.question_share, hurried: self.hurried_share }
    }

    /// What it reads of the recipe's problems: drills, questions, solved problems.
    fn check_documents(&self, at: &At, problems: &Problems) -> Checked {
        at.number("question_share", self.question_share, 0.0..=1.0)?;
        let built_in = self.source == Source::Problems && (self.mix.is_some() || !problems.mix.is_empty());
        if self.drill_share.is_some() && !built_in {
            return Err(at.error("drill_share", "drills are of the built-in tasks of a `mix` alone"));
        }
        if self.question_share > 0.0 && self.source != Source::Problems {
            return Err(at.error("question_share", "questions are of `source = \"problems\"` alone"));
        }
        let blend = self.blend();
        at.number("drill_share", blend.drills, 0.0..=1.0 - self.question_share)?;
        if problems.solved.is_none() || self.source != Source::Problems {
            return Ok(());
        }
        let same = |a: &TaskMix| problems.mix.iter().any(|b| a.task == b.task && a.level == b.level);
        match &self.mix {
            Some(own) if own.iter().any(same) => {
                let message = "with `problems.solved` the recipe's own problems are not read solved: give easier levels";
                Err(at.error("mix", message))
            }
            Some(_) => Ok(()),
            None if built_in && blend.drills + blend.questions < 1.0 => {
                let message = "with `problems.solved` there are no solutions to read: raise `question_share` and \
                               `drill_share` to 1 in all, or give a `mix` of easier levels";
                Err(at.error("question_share", message))
            }
            None if self.hurried_share > 0.0 => {
                Err(at.error("hurried_share", "with `problems.solved` it reads no solutions, hurried or not"))
            }
            None => Ok(()),
        }
    }
}

impl Stage for PretrainStage {
    fn makes(&self) -> Makes {
        Makes::Model
    }

    fn resolve(&mut self, earlier: &Earlier) {
        if self.own.tokenizer.is_empty() {
            self.own.tokenizer = self.own.from.clone().unwrap_or_else(|| earlier.last(Makes::Tokenizer));
        }
        self.training.resolve(3e-3, 100, 100);
        self.side.mtp_weight.get_or_insert(0.3);
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        self.training.check(at)?;
        let own = &self.own;
        match (&own.model, &own.from) {
            (Some(model), None) => earlier.config(at, "model", model)?,
            (None, Some(from)) => earlier.model(at, "from", from)?,
            (None, None) => return Err(at.error("model", "name one of `[models]`, or give `from`")),
            (Some(_), Some(_)) => return Err(at.error("from", "give either `model` or `from`, not both")),
        }
        earlier.refers(at, "tokenizer", &own.tokenizer, "a tokenizer", Makes::tokenizes, &[])?;
        own.source.check(at)?;
        check_own_mix(&own.mix, at)?;
        at.number("hurried_share", own.hurried_share, 0.0..=1.0)?;
        own.check_documents(at, earlier.problems)?;
        at.positive(&[("tokens", own.tokens), ("mtp_every", own.mtp_every)])?;
        at.number("router_bias_rest", own.router_bias_rest, 0.0..=1.0)?;
        at.number("stop_after_tokens", own.stop_after_tokens as f64, 0.0..=own.tokens as f64)?;
        self.packing.check(at)?;
        self.side.check(at)
    }

    fn built_on(&self) -> Vec<&str> {
        self.own.from.as_deref().into_iter().chain([self.own.tokenizer.as_str()]).collect()
    }

    fn draws_problems(&self) -> bool {
        self.own.source == Source::Problems
    }

    fn model(&self) -> Option<&str> {
        self.own.model.as_deref().or(self.own.from.as_deref())
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        self.own.source.files()
    }

    fn length(&self) -> Option<(&'static str, usize)> {
        Some(("seq_len", self.packing.seq_len))
    }

    fn work(&self, _: &Known) -> Option<Work<'_>> {
        let learns = self.side.mtp_weight.is_some_and(|weight| weight > 0.0);
        Some(Work {
            mtp_share: if learns { 1.0 / self.own.mtp_every.max(1) as f64 } else { 0.0 },
            ..Work::packed(&self.training, &self.packing, self.own.trained_tokens() as f64)
        })
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let (model, tokenizer) = self.start(ctx, name)?;
        let seq_len = self.packing.seq_len;
        let dir = ctx.folder.stage_dir(name)?;
        let (stream, held_out, held_out_bytes) = match &self.own.source {
            Source::Problems => {
                let source = ctx.problems()?;
                let mix = source.training_mix(&self.own.mix)?;
                let blend = self.own.blend();
                let stream = Stream::Problems { source, mix, blend };
                let held = (0..HELD_OUT_DOCUMENTS as u64)
                    .map(|i| stream.document(&tokenizer, HELD_OUT_START + i, seq_len));
                let held = held.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
                (stream, held, None)
            }
            Source::Files(files) => {
                let (shards, held, bytes) = shards(ctx, &dir.join("shards"), files, &tokenizer, seq_len)?;
                (Stream::Shards { shards, seed: ctx.seed }, held, Some(bytes))
            }
        };
        let batch_tokens = self.packing.batch_tokens as u64;
        let (total, scheduled) =
            (self.own.trained_tokens().div_ceil(batch_tokens), self.own.tokens.div_ceil(batch_tokens));
        let mut learner = Learner::new(model, tokenizer, &self.training.optimizer, &ctx.team);
        let mut steps = Pretraining {
            stage: self,
            stream,
            held_out: held_out.into_iter().map(Document::plain).collect(),
            dir,
            scheduled,
            options: self.side.options(&self.training),
        };
        let cost = learner.run(ctx, name, &self.training, (total, scheduled), &mut steps)?;
        let measured = HeldOut::measure(&learner.model, &ctx.team, learner.cursor, &steps.held_out);
        measured.save(&steps.dir, total)?;
        let size = inspect(learner.model.config(), seq_len).parameters;
        let mut figures = Figures::of([("steps", total as f64), ("held_out_loss", measured.mean())]);
        figures.model = Some(ModelSize { total: size.total, active: size.active });
        let mut summary = format!("held-out loss {:.3}", measured.mean());
        if let Some(bytes) = held_out_bytes {
            let bits = measured.total() / std::f64::consts::LN_2 / bytes as f64;
            figures.numbers.insert("bits_per_byte".into(), bits);
            figures.numbers.insert("held_out_bytes".into(), bytes as f64);
            summary += &format!(", {bits:.3} bits per byte over {bytes} held-out bytes");
        }
        Ok(StageResult { cost, summary, figures })
    }
}

impl PretrainStage {
    /// The model that the stage begins with, whose context has room for its sequences.
    fn start(&self, ctx: &Context, name: &str) -> Result<(Model, Tokenizer), TrainError> {
        let (model, tokenizer) = match (&self.own.from, &self.own.model) {
            (Some(from), _) => ctx.model(from, Use::Train)?,
            (None, Some(model)) => {
                let tokenizer = Tokenizer::load(&ctx.dir(&self.own.tokenizer)?)?;
                (ctx.fresh_model(model, &tokenizer)?, tokenizer)
            }
            (None, None) => {
                return Err(TrainError::Recipe(format!("stage `{name}` needs `model` or `from`")));
            }
        };
        let (tokens, limit) = (self.packing.seq_len, model.config().max_position_embeddings());
        if tokens > limit {
            return Err(TrainError::TooLong {
                what: format!("`seq_len` of stage `{name}`"),
                tokens,
                limit,
                remedy: "lower it, or raise the model's max_position_embeddings",
            });
        }
        Ok((model, tokenizer))
    }
}

struct Pretraining<'a> {
    stage: &'a PretrainStage,
    stream: Stream<'a>,
    held_out: Vec<Document>,
    dir: PathBuf,
    scheduled: u64,
    options: StepOptions,
}

impl Steps for Pretraining<'_> {
    fn step(&mut self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        let Packing { batch_tokens, seq_len, .. } = self.stage.packing;
        let mut docs = Vec::new();
        let mut tokens = 0;
        while tokens < batch_tokens {
            for ids in self.stream.document(&l.tokenizer, l.cursor, seq_len)? {
                tokens += ids.len() - 1;
                docs.push(Document::plain(ids));
            }
            l.cursor += 1;
        }
        let own = &self.stage.own;
        let mut options = self.options;
        // The bias of the routers rests at the end (V3 report, section 4.2).
        if now.step as f64 >= (1.0 - own.router_bias_rest) * self.scheduled as f64 {
            options.router_bias_rate = 0.0;
        }
        if !now.step.is_multiple_of(own.mtp_every) {
            options.mtp_weight = 0.0;
        }
        Ok(l.next_token_step(pack(&docs), options, now.lr_factor))
    }

    fn measure(&mut self, l: &Learner, step: u64, metrics: &mut Metrics) -> Result<(), TrainError> {
        let measured = HeldOut::measure(&l.model, &l.team, l.cursor, &self.held_out);
        measured.save(&self.dir, step)?;
        Ok(metrics.log(step, &[(keys::EVAL_LOSS, measured.mean())])?)
    }
}

/// A stream of documents that can be read from anywhere.
enum Stream<'a> {
    Problems { source: &'a ProblemSource, mix: Option<Mix>, blend: Blend },
    Shards { shards: Shards, seed: u64 },
}

impl Stream<'_> {
    /// Token ids of document `index`, in pieces of at most `seq_len` inputs. Files are shuffled anew in every epoch.
    fn document(
        &self,
        tokenizer: &Tokenizer,
        index: u64,
        seq_len: usize,
    ) -> Result<Vec<Vec<u32>>, TrainError> {
        match self {
            Stream::Problems { source, mix, blend } => {
                let text = source.document(mix.as_ref(), index, *blend);
                let ids = plain_text(tokenizer, &text)?;
                Ok(chunk_document(&ids, seq_len).into_iter().map(<[u32]>::to_vec).collect())
            }
            Stream::Shards { shards, seed } => {
                let n = shards.len_documents();
                let ids = shards.document(permutation(*seed, index / n, n)(index % n))?;
                Ok(vec![ids])
            }
        }
    }
}

/// The files as token shards (made once), and the held-out documents with the number of their bytes.
fn shards(
    ctx: &Context,
    dir: &Path,
    files: &Files,
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<(Shards, Vec<Vec<u32>>, u64), TrainError> {
    let (train_dir, held_dir, info) = (dir.join("train"), dir.join("held_out"), dir.join("held_out_bytes"));
    if !info.is_file() {
        std::fs::create_dir_all(dir).map_err(crate::run::RunError::io("create", dir))?;
        let mut train = ShardWriter::create(&train_dir, tokenizer.vocab_size())?;
        let mut held = ShardWriter::create(&held_dir, tokenizer.vocab_size())?;
        let mut bytes = 0u64;
        for (i, text) in read_texts_with(&files.path, &files.extensions)?.texts().enumerate() {
            let text = text?;
            // The place in the sorted list decides, so that every kind of document has its share.
            let is_held =
                is_held_out(&(i as u64).to_le_bytes(), ctx.seed, files.held_out_one_in as u64);
            // Where the tokenizer has no beginning of its own, the end of the text before serves as one.
            let mut ids = tokenizer.beginning().to_vec();
            if ids.is_empty() {
                ids.extend(tokenizer.eos_id());
            }
            ids.extend(tokenizer.encode_untrusted(&text)?);
            ids.extend(tokenizer.eos_id());
            if is_held {
                bytes += text.len() as u64;
            }
            for piece in chunk_document(&ids, seq_len).into_iter().filter(|p| p.len() > 1) {
                if is_held { held.push_document(piece)? } else { train.push_document(piece)? }
            }
        }
        train.finish()?;
        held.finish()?;
        crate::run::write_atomic(&info, bytes.to_string().as_bytes())?;
    }
    let (train, held) = (Shards::open(&train_dir)?, Shards::open(&held_dir)?);
    if train.len_documents() == 0 || held.len_documents() == 0 {
        let what = format!(
            "{}: too few documents to hold one in {} out",
            files.path.display(),
            files.held_out_one_in
        );
        return Err(TrainError::Recipe(what));
    }
    let text = std::fs::read_to_string(&info).map_err(crate::run::RunError::io("read", &info))?;
    let held = (0..held.len_documents()).map(|i| held.document(i)).collect::<Result<Vec<_>, _>>()?;
    Ok((train, held, text.trim().parse().unwrap_or(0)))
}
