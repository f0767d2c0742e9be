//! `pretrain`: next-token prediction on worked solutions or on the user's text.

use std::path::Path;

use data::{
    Document, Packed, ShardWriter, Shards, Tokenizer, chunk_document, is_held_out, pack, permutation,
    read_texts_with,
};
use model::inspect::inspect;
use tasks::Mix;

use super::StageResult;
use crate::TrainError;
use crate::context::Context;
use crate::finished::{Figures, ModelSize};
use crate::held_out::{HELD_OUT_DOCUMENTS, HeldOut};
use crate::learner::{Learner, Rhythm, StepOutcome};
use crate::problems::{HELD_OUT_START, ProblemSource};
use crate::run::metrics::keys;
use crate::run::recipe::{Files, PretrainStage, Source};
use crate::step::{StepOptions, train_step};

/// A stream of documents that can be read from anywhere.
enum Stream<'a> {
    Problems { source: &'a ProblemSource, mix: Option<Mix>, hurried_share: f64 },
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
            Stream::Problems { source, mix, hurried_share } => {
                let text = source.document(mix.as_ref(), index, *hurried_share);
                let mut ids = [tokenizer.beginning(), &tokenizer.encode(&text)?].concat();
                ids.extend(tokenizer.eos_id());
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

pub(super) fn run(ctx: &Context, s: &PretrainStage) -> Result<StageResult, TrainError> {
    let (model, tokenizer) = match (&s.from, &s.model) {
        (Some(from), _) => ctx.model(from)?,
        (None, Some(name)) => {
            let tokenizer = Tokenizer::load(&ctx.dir(&s.tokenizer)?)?;
            (ctx.fresh_model(name, &tokenizer)?, tokenizer)
        }
        (None, None) => {
            return Err(TrainError::Recipe(format!("stage `{}` needs `model` or `from`", s.name)));
        }
    };
    let context = model.config().max_position_embeddings();
    if s.seq_len > context {
        return Err(TrainError::TooLong {
            what: format!("`seq_len` of stage `{}`", s.name),
            tokens: s.seq_len,
            limit: context,
            remedy: "lower it, or raise the model's max_position_embeddings",
        });
    }
    let dir = ctx.folder.stage_dir(&s.name)?;
    let seed = ctx.recipe.seed;
    let (train, held_out, held_out_bytes) = match &s.source {
        Source::Problems => {
            let source = ctx.problems()?;
            let mix = source.training_mix(&s.mix)?;
            let stream = Stream::Problems { source, mix, hurried_share: s.hurried_share };
            let held = (0..HELD_OUT_DOCUMENTS as u64)
                .map(|i| stream.document(&tokenizer, HELD_OUT_START + i, s.seq_len));
            let held: Vec<Vec<u32>> = held.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
            (stream, held, None)
        }
        Source::Files(files) => {
            let (shards, held, bytes) = shards(ctx, &dir.join("shards"), files, &tokenizer, s.seq_len)?;
            (Stream::Shards { shards, seed }, held, Some(bytes))
        }
    };
    let held_out: Vec<Document> = held_out.into_iter().map(Document::plain).collect();
    let scheduled = s.tokens.div_ceil(s.batch_tokens as u64);
    let total = s.trained_tokens().div_ceil(s.batch_tokens as u64);
    let rhythm = Rhythm {
        total,
        scheduled,
        sample_every: s.sample_every,
        checkpoint_every: s.checkpoint_every,
        checkpoint_seconds: s.checkpoint_seconds,
    };
    let options = StepOptions {
        mtp_weight: s.mtp_weight as f32,
        router_bias_rate: s.router_bias_rate as f32,
        balance_alpha: s.balance_alpha as f32,
        recompute: s.recompute,
        accumulate: s.accumulate,
        loss_limit: 0.0,
    };
    let mut learner = Learner::new(model, tokenizer, &s.optimizer);
    let cost = learner.run(
        ctx,
        &s.name,
        &s.schedule,
        rhythm,
        |l, step, factor, _| {
            let mut docs = Vec::new();
            let mut tokens = 0;
            while tokens < s.batch_tokens {
                for ids in train.document(&l.tokenizer, l.cursor, s.seq_len)? {
                    tokens += ids.len() - 1;
                    docs.push(Document::plain(ids));
                }
                l.cursor += 1;
            }
            // The bias of the routers rests at the end (V3 report, section 4.2).
            let rests = step as f64 >= (1.0 - s.router_bias_rest) * scheduled as f64;
            let router_bias_rate = if rests { 0.0 } else { options.router_bias_rate };
            let mtp_weight = if step.is_multiple_of(s.mtp_every) { options.mtp_weight } else { 0.0 };
            let loss_limit = l.loss_limit();
            let options = StepOptions { router_bias_rate, mtp_weight, loss_limit, ..options };
            step_outcome(l, pack(&docs), options, factor)
        },
        |l, step, metrics| {
            if s.eval_every > 0 && step.is_multiple_of(s.eval_every) {
                let measured = HeldOut::measure(&l.model, l.cursor, &held_out);
                measured.save(&dir, step)?;
                metrics.log(step, &[(keys::EVAL_LOSS, measured.mean())])?;
            }
            Ok(())
        },
    )?;
    let measured = HeldOut::measure(&learner.model, learner.cursor, &held_out);
    measured.save(&dir, total)?;
    let size = inspect(learner.model.config(), s.seq_len).parameters;
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

/// A step of next-token prediction, as an outcome for the loop.
pub(super) fn step_outcome(
    l: &mut Learner,
    batch: Packed,
    options: StepOptions,
    factor: f32,
) -> Result<StepOutcome, TrainError> {
    let tokens = batch.tokens.len() as u64;
    let stats = train_step(&mut l.model, &mut l.optimizer, batch, &options, factor);
    if !stats.report.skipped {
        l.saw_loss(stats.loss);
    }
    let mut values = vec![
        (keys::LOSS, stats.loss),
        ("grad_norm", f64::from(stats.report.grad_norm)),
        ("learning_rate_factor", f64::from(factor)),
    ];
    values.extend(stats.mtp_loss.map(|l| ("mtp_loss", l)));
    values.extend(stats.max_load.map(|l| ("max_expert_load", l)));
    Ok(StepOutcome { values, tokens, skipped: stats.report.skipped, enough: false })
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
                is_held_out(&(i as u64).to_le_bytes(), ctx.recipe.seed, files.held_out_one_in as u64);
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
        crate::run::folder::write_atomic(&info, bytes.to_string().as_bytes())?;
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
