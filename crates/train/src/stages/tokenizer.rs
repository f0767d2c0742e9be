//! `tokenizer`: a byte-level BPE on the run's own text.

use data::{Tokenizer, TrainOptions, read_texts_with};
use tasks::Style;

use super::StageResult;
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::run::recipe::{Source, TokenizerStage};

pub(super) fn run(ctx: &Context, s: &TokenizerStage) -> Result<StageResult, TrainError> {
    let meter = ctx.meter(&s.name, None);
    let options = TrainOptions::reasoning(s.vocab_size);
    let tokenizer = match &s.source {
        Source::Problems => {
            let problems = ctx.problems()?;
            let texts = (0..s.documents as u64).map(|i| {
                // Documents and conversations alike, so that prompts and traces get their words too.
                if i % 2 == 0 {
                    problems.document(None, i, 0.3)
                } else {
                    let p = problems.train(None, i);
                    format!("{}\n{}", p.prompt, tasks::corpus::completion(&p, Style::Careful, i))
                }
            });
            Tokenizer::train(texts.collect::<Vec<_>>().into_iter(), &options)?
        }
        Source::Files(files) => {
            let texts = read_texts_with(&files.path, &files.extensions)?.texts();
            let limit = if s.documents == 0 { usize::MAX } else { s.documents };
            Tokenizer::train_fallible(texts.take(limit), &options)?
        }
    };
    tokenizer.save(&ctx.folder.stage_dir(&s.name)?)?;
    let ids = tokenizer.vocab_size();
    Ok(StageResult {
        cost: meter.stop(),
        summary: format!("{ids} tokens"),
        figures: Figures::of([("vocab_size", ids as f64)]),
    })
}
