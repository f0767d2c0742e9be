//! What a run shows: one line per stage that is rewritten on a terminal, and a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use train::context::{Progress, RankShare, Reporter};
use train::ledger::StageCost;

use crate::output::{colours, harmless, tell, tell_part};

/// Seconds between two lines of the same stage.
const ON_TERMINAL: f64 = 0.2;
const ELSEWHERE: f64 = 10.0;

/// Speaks on stderr, on one rank.
pub struct Terminal {
    speaks: bool,
    terminal: bool,
    state: Mutex<State>,
    interrupts: Arc<AtomicU32>,
}

struct State {
    /// What is said before the first stage.
    opening: Option<String>,
    stage: String,
    told: Instant,
    /// Whether the cursor stands behind an unfinished line.
    open: bool,
    last: String,
}

impl Terminal {
    /// A reporter for this process, which counts how often it is asked to stop.
    pub fn new(speaks: bool, interrupts: Arc<AtomicU32>) -> Terminal {
        let state = State {
            opening: None,
            stage: String::new(),
            told: Instant::now(),
            open: false,
            last: String::new(),
        };
        let terminal = std::io::stderr().is_terminal();
        Terminal { speaks, terminal, state: Mutex::new(state), interrupts }
    }

    /// Ctrl-C asks the run to save and stop; a second one ends the process at once.
    pub fn catch_interrupt(&self) -> Result<()> {
        let (count, speaks) = (self.interrupts.clone(), self.speaks);
        let handler = move || {
            if count.fetch_add(1, Relaxed) > 0 {
                std::process::exit(130);
            }
            if speaks {
                tell("\nsaving … (Ctrl-C again to stop at once)");
            }
        };
        ctrlc::set_handler(handler).context("cannot catch Ctrl-C")
    }

    /// Says this before the first stage; not at all where none begins.
    pub fn open_with(&self, text: Option<String>) {
        self.state().opening = text;
    }

    /// Ends an unfinished line.
    pub fn finish(&self) {
        let mut s = self.state();
        if s.open {
            tell("");
            s.open = false;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full_line(&self, text: &str) {
        if !self.speaks {
            return;
        }
        self.finish();
        tell(text);
    }
}

fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}

/// Each rank's share of the work and of its time that it waits, in per cent, as `25/3`.
fn ranks(shares: &[RankShare]) -> String {
    /// More do not fit a line.
    const SHOWN: usize = 8;
    if shares.is_empty() {
        return String::new();
    }
    let each = shares.iter().take(SHOWN).map(|r| format!("{:.0}/{:.0}", 100.0 * r.work, 100.0 * r.waiting));
    let more = if shares.len() > SHOWN { " …" } else { "" };
    format!("  ranks, work/waiting {}{more} %", each.collect::<Vec<_>>().join(" "))
}

impl Reporter for Terminal {
    fn stage(&self, name: &str, kind: &str, index: usize, count: usize) {
        let opening = self.state().opening.take();
        if let Some(opening) = opening {
            self.full_line(&opening);
        }
        let what = if name == kind { String::new() } else { format!(" ({kind})") };
        self.full_line(&format!("[{index}/{count}] {name}{what}"));
        let mut s = self.state();
        s.stage = name.to_owned();
        s.told = Instant::now();
        s.last.clear();
    }

    fn progress(&self, p: &Progress) {
        if !self.speaks {
            return;
        }
        let text = format!(
            "  {:<16} {:>5}/{:<5} {} {:<7.3} {:>7.0} tok/s  {:>3.0} % of ceiling  {} left{}",
            p.stage,
            p.step,
            p.total,
            p.headline.0,
            p.headline.1,
            p.tokens_per_second,
            100.0 * p.ceiling_share,
            duration(p.seconds_left),
            ranks(p.ranks)
        );
        let mut s = self.state();
        let wait = if self.terminal { ON_TERMINAL } else { ELSEWHERE };
        if s.told.elapsed().as_secs_f64() < wait && p.step < p.total {
            s.last = text;
            return;
        }
        s.told = Instant::now();
        if self.terminal {
            // What a narrow terminal has no room for is cut off, not wrapped.
            tell_part(&format!("\r\x1b[?7l{text}\x1b[K\x1b[?7h"));
            s.open = true;
        } else {
            tell(&text);
        }
    }

    fn stage_done(&self, name: &str, cost: &StageCost, summary: &str) {
        let memory = cost.peak_memory_bytes as f64 / (1u64 << 20) as f64;
        self.full_line(&format!(
            "  {name}: {summary}  [{}, {} tokens, {:.2e} FLOPs, {memory:.0} MiB, {:.5} $]",
            duration(cost.seconds),
            cost.tokens,
            cost.operations as f64,
            cost.cost
        ));
    }

    fn sample(&self, _stage: &str, step: u64, prompt: &str, completion: &str) {
        let (dim, plain) = if colours(self.terminal) { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let text = harmless(&completion.replace('\n', " "));
        let text = match text.split_once("</think>") {
            Some((thought, answer)) => format!("{dim}{thought}</think>{plain}{answer}"),
            None => format!("{dim}{text}{plain}"),
        };
        self.finish();
        tell_part(&format!("  at step {step}: {} → {text}\n", harmless(&prompt.replace('\n', " "))));
    }

    fn note(&self, text: &str) {
        self.full_line(&format!("  {text}"));
    }

    fn stop(&self) -> bool {
        self.interrupts.load(Relaxed) > 0
    }
}
