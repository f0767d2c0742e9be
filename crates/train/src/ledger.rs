//! What a stage costs: time, work, memory, energy, money.
//!
//! Readings come from the operating system where it gives them (Linux) and are left out where it does not;
//! nothing is guessed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::team::Team;

/// The cost of one stage: a line of the ledger.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StageCost {
    /// The stage.
    pub name: String,
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Time that the threads of all ranks spent on cores, in seconds; 0 where it cannot be read.
    pub cpu_seconds: f64,
    /// Tokens trained on and generated.
    pub tokens: u64,
    /// Floating-point operations, counted per op: a multiplication and an addition are two.
    pub operations: u64,
    /// The most memory that was resident at a time, in bytes; 0 where it cannot be read. Where the system
    /// does not let the peak be reset, it is that of the whole process so far.
    pub peak_memory_bytes: u64,
    /// Energy of the processor packages while the stage ran, where RAPL is readable: the whole machine's.
    pub joules: Option<f64>,
    /// `seconds` on all cores of all ranks at the stated price, in dollars.
    pub cost: f64,
}

impl StageCost {
    /// That of all ranks together: their time on cores, and the most memory that one of them took. Energy is left out, since ranks
    /// may share machines.
    pub fn over(self, team: &Team) -> StageCost {
        if team.ranks() == 1 {
            return self;
        }
        let all = team.all((self.cpu_seconds, self.peak_memory_bytes));
        StageCost {
            cpu_seconds: all.iter().map(|(seconds, _)| seconds).sum(),
            peak_memory_bytes: all.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0),
            joules: None,
            ..self
        }
    }
}

/// What is measured while a stage runs.
///
/// A stage that was interrupted goes on from the [`StageCost`] in its checkpoint, see [`Meter::resume`].
#[derive(Debug)]
pub struct Meter {
    before: StageCost,
    price_per_second: f64,
    started: Instant,
    cpu_started: Option<f64>,
    energy: Option<Energy>,
    tokens: u64,
    operations: u64,
}

impl Meter {
    /// Begins to measure a stage that runs on `cores` cores, each at a price in dollars an hour.
    pub fn start(name: &str, cores: usize, price_per_core_hour: f64) -> Self {
        Meter::resume(StageCost { name: name.to_owned(), ..StageCost::default() }, cores, price_per_core_hour)
    }

    /// Goes on measuring a stage that has already cost `before`.
    pub fn resume(before: StageCost, cores: usize, price_per_core_hour: f64) -> Self {
        reset_peak_memory();
        Meter {
            before,
            price_per_second: cores as f64 * price_per_core_hour / 3600.0,
            started: Instant::now(),
            cpu_started: cpu_seconds(),
            energy: Energy::open(Path::new("/sys/class/powercap")),
            tokens: 0,
            operations: 0,
        }
    }

    /// Counts work that was done. To be called at least every few minutes, as energy counters run over.
    pub fn add(&mut self, tokens: u64, operations: u64) {
        self.tokens += tokens;
        self.operations += operations;
        if let Some(energy) = &mut self.energy {
            energy.read();
        }
    }

    /// Operations counted so far, including those before an interruption.
    pub fn operations(&self) -> u64 {
        self.before.operations + self.operations
    }

    /// Tokens counted so far, including those before an interruption.
    pub fn tokens(&self) -> u64 {
        self.before.tokens + self.tokens
    }

    /// The cost so far, for a checkpoint.
    pub fn so_far(&mut self) -> StageCost {
        let seconds = self.started.elapsed().as_secs_f64();
        let cpu = cpu_seconds().zip(self.cpu_started).map_or(0.0, |(now, then)| now - then);
        let joules = self.energy.as_mut().map(|energy| {
            energy.read();
            energy.joules
        });
        let before = &self.before;
        // Energy of a part that could not be read would be missing from the sum, so then there is no sum.
        let fresh = before.seconds == 0.0;
        StageCost {
            name: before.name.clone(),
            seconds: before.seconds + seconds,
            cpu_seconds: before.cpu_seconds + cpu,
            tokens: self.tokens(),
            operations: self.operations(),
            peak_memory_bytes: before.peak_memory_bytes.max(peak_memory_bytes().unwrap_or(0)),
            joules: if fresh { joules } else { joules.zip(before.joules).map(|(now, then)| now + then) },
            cost: before.cost + seconds * self.price_per_second,
        }
    }

    /// Ends the measurement.
    pub fn stop(mut self) -> StageCost {
        self.so_far()
    }
}

/// Ticks of `/proc/self/stat` a second; Linux shows it as 100 to programs on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// The time that this process's threads have spent on cores, where it can be read.
pub fn cpu_seconds() -> Option<f64> {
    parse_cpu_seconds(&fs::read_to_string("/proc/self/stat").ok()?)
}

fn parse_cpu_seconds(stat: &str) -> Option<f64> {
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// The most memory that was resident at a time, in bytes, where it can be read.
pub fn peak_memory_bytes() -> Option<u64> {
    parse_peak_memory(&fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_peak_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Lets the peak begin at the present size. Where this is not allowed, the peak stays the process's.
fn reset_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Energy counters of the processor packages (RAPL).
#[derive(Debug)]
struct Energy {
    packages: Vec<Package>,
    joules: f64,
}

#[derive(Debug)]
struct Package {
    counter: PathBuf,
    /// Where the counter begins again from 0, in microjoules.
    range: u64,
    last: u64,
}

impl Energy {
    /// Finds the packages, if every one of them can be read.
    fn open(powercap: &Path) -> Option<Self> {
        let mut packages = Vec::new();
        for zone in fs::read_dir(powercap).ok()? {
            let zone = zone.ok()?.path();
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it that its counter includes. The same
            // package shows up again under `intel-rapl-mmio`.
            let name = zone.file_name()?.to_str()?;
            if !name.starts_with("intel-rapl:") || name.matches(':').count() != 1 {
                continue;
            }
            // `psys` counts the whole platform, packages included.
            if !fs::read_to_string(zone.join("name")).ok()?.starts_with("package") {
                continue;
            }
            let counter = zone.join("energy_uj");
            let range = read_number(&zone.join("max_energy_range_uj"))?;
            packages.push(Package { last: read_number(&counter)?, counter, range });
        }
        (!packages.is_empty()).then_some(Energy { packages, joules: 0.0 })
    }

    fn read(&mut self) {
        for package in &mut self.packages {
            let Some(now) = read_number(&package.counter) else { continue };
            let spent =
                if now >= package.last { now - package.last } else { now + package.range - package.last };
            self.joules += spent as f64 / 1e6;
            package.last = now;
        }
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program may be called anything, parentheses and spaces included.
    #[test]
    fn cpu_time_is_found_behind_any_program_name() {
        let stat = "17 (a ) b (c)) S 1 17 17 0 -1 4194304 90 0 0 0 250 50 7 7 20 0 1 0 9 9 9";
        assert_eq!(parse_cpu_seconds(stat), Some(3.0));
        assert_eq!(parse_cpu_seconds("nonsense"), None);
    }

    #[test]
    fn peak_memory_is_in_bytes() {
        assert_eq!(parse_peak_memory("VmPeak:\t 9 kB\nVmHWM:\t    1536 kB\n"), Some(1536 * 1024));
        assert_eq!(parse_peak_memory("VmPeak:\t 9 kB\n"), None);
    }

    /// Energy: packages alone, each once, over the end of the counter; unreadable counters give nothing.
    #[test]
    fn energy_counts_packages_and_runs_over() {
        let dir = tempfile::tempdir().unwrap();
        let zone = |name: &str, label: &str, energy: &str| {
            let zone = dir.path().join(name);
            fs::create_dir_all(&zone).unwrap();
            fs::write(zone.join("name"), label).unwrap();
            fs::write(zone.join("max_energy_range_uj"), "10000000\n").unwrap();
            fs::write(zone.join("energy_uj"), energy).unwrap();
        };
        assert!(Energy::open(dir.path()).is_none(), "no package, no energy");
        zone("intel-rapl:0", "package-0\n", "9000000\n");
        zone("intel-rapl:0:0", "core\n", "5\n");
        zone("intel-rapl:1", "psys\n", "5\n");
        let mut energy = Energy::open(dir.path()).unwrap();
        zone("intel-rapl:0", "package-0\n", "1500000\n");
        energy.read();
        assert_eq!(energy.joules, 2.5);
        fs::remove_file(dir.path().join("intel-rapl:0/energy_uj")).unwrap();
        assert!(Energy::open(dir.path()).is_none());
    }

    /// A resumed stage adds to what it had cost, and energy is a sum of all parts or nothing.
    #[test]
    fn a_resumed_meter_goes_on() {
        let before = StageCost {
            name: "grpo".into(),
            seconds: 100.0,
            tokens: 5,
            operations: 7,
            cost: 1.0,
            ..StageCost::default()
        };
        let mut meter = Meter::resume(before, 2, 0.02);
        meter.add(10, 20);
        assert_eq!((meter.tokens(), meter.operations()), (15, 27));
        let cost = meter.stop();
        assert!(cost.seconds >= 100.0 && cost.cost >= 1.0 && cost.cost < 1.1);
        assert_eq!((cost.tokens, cost.operations, cost.joules), (15, 27, None));
    }
}
