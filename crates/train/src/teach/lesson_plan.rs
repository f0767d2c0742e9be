//! The recipe that a lesson becomes, cut to the time there is.

use std::fmt::Write;
use std::path::Path;

use tasks::AnswerPlace;

use super::lesson::prompt_template;
use super::{Budget, Lesson};

/// Held-out rows: one in five, and so many at most.
const MOST_HELD_OUT: usize = 100;
/// Of the time, what measuring before and after may take.
const MEASURING: f64 = 0.25;
/// Of the rest, what fine-tuning on given solutions takes where rounds of the model's own answers follow.
const SOLUTIONS: f64 = 0.6;
/// Passes over what there is to learn, at most, where it is plenty: more add nothing (LOG.md).
const EPOCHS: f64 = 6.0;
/// And where it is a handful of rows, which show the form.
const MOST_EPOCHS: f64 = 30.0;
/// Rows from which on it is plenty.
const PLENTY: f64 = 200.0;
/// Rounds of sampling and learning, at most.
const MOST_ROUNDS: f64 = 4.0;
/// How much of the model as it came is in what comes out: of 80 % right at 4.4 % more bits per byte of other text, 0.15 made 80 % at
/// 2.9 %, and 0.3 made 78 % at 1.9 % (LOG.md).
const SHARE_OF_START: f64 = 0.2;
/// Tokens of an optimizer step.
const BATCH: usize = 2048;
/// Answers sampled to a problem.
const SAMPLES: usize = 4;
/// Samples of a held-out row, beside the greedy answer; where time is short, the fewer.
const MEASURED: [usize; 2] = [8, 4];

/// Of adapters the usual rate; of all weights 1e-4 for a model of 135 M (4e-4 learnt less in the same steps, LOG.md), and more
/// for smaller ones.
fn learning_rate(b: &Budget) -> f64 {
    let rate: f64 = match b.lora {
        Some(_) => 2e-4,
        None => (1e-4 * (135e6 / b.parameters).sqrt()).clamp(1e-5, 1e-3),
    };
    // Two digits are enough to read and to write.
    format!("{rate:.1e}").parse().expect("a number")
}

/// What will be done.
#[derive(Clone, Debug, PartialEq)]
pub struct LessonPlan {
    /// Rows that are kept for measuring.
    pub held_out: usize,
    /// Samples of each, beside the greedy answer.
    pub samples: usize,
    /// Steps of fine-tuning on the solutions given.
    pub solution_steps: u64,
    /// Rounds of sampling and learning.
    pub rounds: usize,
    /// Problems of a round, and steps of learning.
    pub round: (usize, u64),
}

impl LessonPlan {
    /// Divides the time.
    pub fn of(lesson: &Lesson, b: &Budget) -> LessonPlan {
        let rows = lesson.problems.len();
        let most = (rows / 5).clamp(4, MOST_HELD_OUT);
        // Before and after, the greedy answer and the samples.
        let measuring =
            |rows: usize, samples| (rows * (1 + samples)) as f64 * (b.before.1 + b.answer) * b.generating;
        let fits = |rows, samples| measuring(rows, samples) <= MEASURING * b.seconds;
        let samples = MEASURED.into_iter().find(|&k| fits(most, k)).unwrap_or(MEASURED[1]);
        let held_out = (4..=most).rev().find(|&n| fits(n, samples)).unwrap_or(4);
        let left = (b.seconds - measuring(held_out, samples)).max(0.0);
        let step = BATCH as f64 * b.training;
        let steps_of = |seconds: f64, rows: f64| {
            let epochs = (EPOCHS * PLENTY / rows).clamp(EPOCHS, MOST_EPOCHS);
            let most = (epochs * rows * b.row / BATCH as f64).ceil().max(1.0);
            (seconds / step).floor().clamp(1.0, most) as u64
        };
        let training_rows = (rows - held_out) as f64;
        let solution_steps = match lesson.solved {
            0 => 0,
            solved => steps_of(SOLUTIONS * left, solved as f64),
        };
        let left = (left - solution_steps as f64 * step).max(0.0);
        // Half of a round samples, half of it learns; one that goes over all rows is as long as it is worth.
        let problem = SAMPLES as f64 * b.answer * b.generating;
        let whole = 2.0 * training_rows * problem;
        let rounds = (left / whole).round().clamp(1.0, MOST_ROUNDS);
        let left = left / rounds / 2.0;
        let problems = (left / problem).clamp(8.0, training_rows.max(8.0)) as usize;
        let learn = steps_of(left, problems as f64);
        LessonPlan { held_out, samples, solution_steps, rounds: rounds as usize, round: (problems, learn) }
    }

    /// The recipe, to be read by people too. Paths are absolute, so that it runs from anywhere.
    pub fn recipe(
        &self,
        name: &str,
        (model, problems): (&Path, &Path),
        lesson: &Lesson,
        (before, place): (&AnswerPlace, &AnswerPlace),
        held_text: Option<&str>,
        b: &Budget,
    ) -> String {
        let text = |value: &str| toml::Value::from(value).to_string();
        let path = |p: &Path| text(&p.to_string_lossy());
        let mut out = String::new();
        let mut put = |line: String| out.push_str(&line);
        put(format!(
            "# Written by `shoestring teach`: change it and run it with `shoestring run` to go on from here.\nname = {}\nseed = 1\n\n",
            text(name)
        ));
        put(format!(
            "[problems]\njsonl = {}\nheld_out = {}\nverifier = {}\nanswer = {}\n",
            path(problems),
            self.held_out,
            text(lesson.verifier),
            text(&place.to_string())
        ));
        if let Some(template) = prompt_template(place) {
            put(format!("prompt = {}\n", text(&template)));
        }
        put(format!("\n[machine]\nmemory_gib = {:.1}\n", (b.memory / f64::from(1u32 << 30)).max(0.1)));
        put(format!(
            "\n[[claim]]\nname = \"what was taught shows on rows that nothing was trained on\"\nstage = \"model\"\nbaseline = {}\nagainst = \"the model as it came\"\nfigure = \"pass@1\"\nequal_flops = false\n",
            path(model)
        ));
        let held_text = held_text.map_or_else(String::new, |t| format!("held_text = {}\n", text(t)));
        let own_way = match before.to_string() == place.to_string() {
            true => String::new(),
            false => format!(
                "# Asked in the way that suits it best.\nanswer = {}\nprompt = {}\n",
                text(&before.to_string()),
                text(&prompt_template(before).unwrap_or_else(|| "{prompt}".to_owned()))
            ),
        };
        put(format!(
            "\n[[stage]]\nkind = \"eval\"\nname = \"before\"\nof = {}\nsamples = {}\nmax_new = {}\n{own_way}{held_text}",
            path(model),
            self.samples,
            b.before.0
        ));
        let mut from = path(model);
        let adapter = match b.lora {
            Some(rank) => format!("adapter = {{ rank = {rank}, alpha = {} }}\n", 2 * rank),
            None => String::new(),
        };
        let rate = learning_rate(b);
        let training = format!(
            "batch_tokens = {BATCH}\nseq_len = {}\nhurried_share = 0.0\n{adapter}optimizer = {{ kind = \"adamw\", learning_rate = {rate:.1e}, weight_decay = 0.0 }}\nschedule = {{ kind = \"wsd\", warmup = 0.05, decay = 0.5, final_ratio = 0.1 }}\nsample_every = 0\n",
            b.seq_len
        );
        let last = self.rounds;
        if self.solution_steps > 0 {
            let _ = write!(
                out,
                "\n[[stage]]\nkind = \"sft\"\nname = \"solutions\"\nfrom = {from}\nsteps = {}\n{training}",
                self.solution_steps
            );
            from = text("solutions");
        }
        for round in 1..=last {
            let (problems, steps) = self.round;
            // An adapter stays one to the end; weights go a part of the way back.
            let name =
                if round == last && b.lora.is_some() { "model".to_owned() } else { format!("round_{round}") };
            let own = text(&own_answers(round));
            let _ = write!(
                out,
                "\n[[stage]]\nkind = \"reject\"\nname = {own}\nfrom = {from}\nproblems = {problems}\nsamples = {SAMPLES}\nkeep = 2\nmax_new = {}\n\n[[stage]]\nkind = \"sft\"\nname = {}\nfrom = {from}\ndata = {{ stage = {own} }}\nsteps = {steps}\n{training}",
                b.max_new,
                text(&name)
            );
            from = text(&name);
        }
        if b.lora.is_none() {
            let _ = write!(
                out,
                "\n# What fine-tuning forgot comes back, what it learnt stays, nearly.\n[[stage]]\nkind = \"average\"\nname = \"model\"\nfrom = {from}\nwith = {}\nshare = {SHARE_OF_START}\n",
                path(model)
            );
        }
        let _ = write!(
            out,
            "\n[[stage]]\nkind = \"eval\"\nname = \"after\"\nof = \"model\"\nsamples = {}\nmax_new = {}\n{held_text}",
            self.samples, b.max_new
        );
        out
    }
}

/// The stage that samples the model's own answers in a round, counted from 1.
pub(super) fn own_answers(round: usize) -> String {
    format!("own_{round}")
}
