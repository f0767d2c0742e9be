//! Ranks: the processes that an MPI has started together with this one.

#[cfg(feature = "mpi")]
mod mpi;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::{Result, bail};
use comm::Comm;
use comm::single::Single;

use crate::output::{sentence, tell};

/// How long another rank than the first waits for that one to say what is wrong, before it does.
const COURTESY: Duration = Duration::from_secs(2);

/// The variables by which Open MPI, MPICH and SLURM tell a process how many it is one of.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Those by which they tell how many of them are on this machine.
const LOCAL_SIZES: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"];

fn number(names: &[&str]) -> Option<usize> {
    names.iter().find_map(|name| std::env::var(name).ok()?.split(['(', ',']).next()?.parse().ok())
}

/// How many processes were started together with this one, itself included.
fn started() -> usize {
    number(&SIZES).unwrap_or(1)
}

/// The threads that this process should use where nobody said: an equal share where ranks share a machine.
pub fn threads() -> Option<usize> {
    let here = number(&LOCAL_SIZES).filter(|_| started() > 1)?;
    Some((tensor::threads::threads() / here).max(1))
}

/// What the ranks share.
pub struct Joined {
    /// What joins them.
    pub comm: Rc<dyn Comm>,
    /// How often the process was asked to stop.
    pub interrupts: Arc<AtomicU32>,
}

impl Joined {
    /// One process alone.
    pub fn single() -> Joined {
        Joined { comm: Rc::new(Single), interrupts: Arc::default() }
    }

    /// Whether this is the rank that speaks and writes.
    pub fn leads(&self) -> bool {
        self.comm.rank() == 0
    }
}

/// Does some work with all ranks. Where it fails on one of them all end, with one sentence.
pub fn together(work: impl FnOnce(&Joined) -> Result<()>) -> Result<()> {
    let joined = join()?;
    let done = work(&joined);
    let comm = joined.comm;
    match done {
        Err(e) if comm.ranks() > 1 => {
            if comm.rank() > 0 {
                std::thread::sleep(COURTESY);
            }
            let who = if comm.rank() > 0 { format!("rank {}: ", comm.rank()) } else { String::new() };
            tell(&format!("error: {who}{}", sentence(&e)));
            comm.end(2)
        }
        done => {
            comm.leave();
            done
        }
    }
}

/// Refuses to do what one process does, where several were started.
pub fn alone(command: &str) -> Result<()> {
    match started() {
        1 => Ok(()),
        n => bail!(
            "`{command}` works in one process, and {n} were started: start it without an MPI; `run` shares a recipe among them"
        ),
    }
}

#[cfg(not(feature = "mpi"))]
fn join() -> Result<Joined> {
    match started() {
        1 => Ok(Joined::single()),
        n => bail!(
            "{n} processes were started, but this program was built to work alone: build it with \
             `cargo build --release --features mpi`"
        ),
    }
}

#[cfg(feature = "mpi")]
fn join() -> Result<Joined> {
    use anyhow::Context;
    use mpi::{Mpi, Watch};
    use std::sync::atomic::Ordering::Relaxed;

    if started() == 1 {
        return Ok(Joined::single());
    }
    let interrupts: Arc<AtomicU32> = Arc::default();
    let asked = interrupts.clone();
    let watch = Watch {
        patience: patience()?,
        stopping: Box::new(move || asked.load(Relaxed) > 0),
        late: Box::new(|rank| {
            tell(&format!("stopping, and still waiting for rank {rank}; if a rank has ended, {GO_ON}"));
        }),
        lost: Box::new(|lost| tell(&format!("error: {lost}; {GO_ON}"))),
    };
    let mpi = Mpi::join(watch).context("the MPI that started this process cannot be joined")?;
    Ok(Joined { comm: Rc::new(mpi), interrupts })
}

/// What to do when a rank is lost.
#[cfg(feature = "mpi")]
const GO_ON: &str = "what was saved is whole: start the same command again, with as many ranks as there are";

/// How long a rank waits for another before it gives up.
#[cfg(feature = "mpi")]
fn patience() -> Result<Duration> {
    const NAME: &str = "SHOESTRING_PATIENCE";
    let Ok(text) = std::env::var(NAME) else { return Ok(Duration::from_secs(1800)) };
    match text.parse() {
        Ok(seconds @ 1..=1_000_000) => Ok(Duration::from_secs(seconds)),
        _ => bail!("{NAME}={text:?}: expected seconds, 1 to 1000000"),
    }
}
