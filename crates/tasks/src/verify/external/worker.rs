//! One process of an external command: lines in, lines out, with a deadline for each.

use super::{ALWAYS_GIVEN, Command};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A longer line is nonsense; it bounds the memory that a process can make us use.
const MAX_LINE: u64 = 4 << 20;
/// Pauses between restarts double from the first to the second of these.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the external command crashed: {0}")]
    Crash(String),
    #[error("the external command did not answer within {0:?}")]
    Timeout(Duration),
    #[error("the external command answered nonsense: {0}")]
    Nonsense(String),
}

/// A process, started when it is first needed.
pub(super) struct Worker {
    command: Command,
    process: Option<Process>,
    failures_in_a_row: u32,
    not_before: Option<Instant>,
}

/// The pipes are served by threads of their own, so neither a process that does not read nor one that does not
/// write can hold us; the threads end with the pipes.
struct Process {
    child: Child,
    input: Sender<String>,
    output: Receiver<std::io::Result<String>>,
    last_words: Arc<Mutex<LastWords>>,
    answered: bool,
}

impl Worker {
    pub(super) fn new(command: &Command) -> Worker {
        Worker { command: command.clone(), process: None, failures_in_a_row: 0, not_before: None }
    }

    /// Starts the process unless it runs.
    pub(super) fn start(&mut self) -> std::io::Result<()> {
        self.process().map(|_| ())
    }

    /// The running process, or a fresh one after the pause that its failures have earned.
    fn process(&mut self) -> std::io::Result<&mut Process> {
        if self.process.is_none() {
            if let Some(then) = self.not_before.take() {
                std::thread::sleep(then.saturating_duration_since(Instant::now()));
            }
            self.process = Some(Process::start(&self.command)?);
        }
        Ok(self.process.as_mut().expect("started above"))
    }

    pub(super) fn send(&mut self, request: &Value) -> Result<(), Failure> {
        let line = format!("{request}\n");
        let process = self.process().map_err(|e| Failure::Crash(format!("it cannot be started: {e}")))?;
        process.input.send(line).map_err(|_| process.crash())
    }

    /// The next line, as JSON.
    pub(super) fn receive(&mut self) -> Result<Value, Failure> {
        let (timeout, startup) = (self.command.timeout, self.command.startup);
        let Some(process) = self.process.as_mut() else {
            return Err(Failure::Crash("it is not running".into()));
        };
        let limit = if process.answered { timeout } else { timeout + startup };
        let line = match process.output.recv_timeout(limit) {
            Ok(Ok(line)) => line,
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                return Err(Failure::Nonsense(e.to_string()));
            }
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Err(process.crash()),
            Err(RecvTimeoutError::Timeout) => return Err(Failure::Timeout(limit)),
        };
        process.answered = true;
        serde_json::from_str(&line).map_err(|_| {
            let shown: String = line.chars().take(60).collect();
            Failure::Nonsense(format!("not JSON: {shown:?}"))
        })
    }

    pub(super) fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
    }

    /// Ends the process, whatever state it is in, and sets the pause before the next start.
    pub(super) fn kill(&mut self) {
        self.process = None;
        let pause = BACK_OFF.0.saturating_mul(1 << self.failures_in_a_row.min(10)).min(BACK_OFF.1);
        self.failures_in_a_row += 1;
        self.not_before = Some(Instant::now() + pause);
    }
}

impl Process {
    fn start(of: &Command) -> std::io::Result<Process> {
        let mut command = std::process::Command::new(&of.argv[0]);
        let given = ALWAYS_GIVEN.iter().copied().chain(of.env.iter().map(String::as_str));
        command.env_clear().envs(given.filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.args(&of.argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C lets a run save without its workers dying first, and a kill reaches their children.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");

        let (input, lines) = channel::<String>();
        std::thread::spawn(move || {
            for line in lines {
                if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        // A process that writes without being asked fills this and then its pipe, not our memory.
        let (results, output) = sync_channel(64);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            loop {
                let line = read_line(&mut reader);
                let ends = line.is_err();
                if results.send(line).is_err() || ends {
                    break;
                }
            }
        });
        let last_words = Arc::new(Mutex::new(LastWords::default()));
        let words = Arc::clone(&last_words);
        std::thread::spawn(move || listen(stderr, &words));
        Ok(Process { child, input, output, last_words, answered: false })
    }

    /// Describes how the process ended, with its last line on stderr.
    fn crash(&mut self) -> Failure {
        // The pipes close a moment before the process can be waited for, and what it said last may still be on its way.
        let deadline = Instant::now() + Duration::from_millis(200);
        let (status, words) = loop {
            let status = self.child.try_wait();
            let last = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
            match status {
                Ok(Some(_) | None) if !last.all && Instant::now() < deadline => {}
                Ok(Some(status)) => break (status.to_string(), last.line()),
                Ok(None) if Instant::now() < deadline => {}
                _ => break ("closed its output".to_owned(), last.line()),
            }
            drop(last);
            std::thread::sleep(Duration::from_millis(2));
        };
        Failure::Crash(if words.is_empty() { status } else { format!("{status}: {words}") })
    }
}

/// The end of what a process wrote to stderr.
#[derive(Default)]
struct LastWords {
    bytes: Vec<u8>,
    /// Whether nothing more will come.
    all: bool,
}

impl LastWords {
    /// The most that is kept, in bytes.
    const KEPT: usize = 4096;

    /// The last line that says something, cut short.
    fn line(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        last.unwrap_or_default().chars().take(200).collect()
    }
}

/// Takes in whatever a process writes to stderr, text or not, with line ends or not, until it ends: were nobody to read,
/// the process would be stopped or killed by its own notes.
fn listen(mut stderr: impl Read, words: &Mutex<LastWords>) {
    let mut part = [0; 4096];
    loop {
        let read = stderr.read(&mut part);
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(n) if n > 0 => {
                words.bytes.extend_from_slice(&part[..n]);
                let over = words.bytes.len().saturating_sub(LastWords::KEPT);
                words.bytes.drain(..over);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            _ => {
                words.all = true;
                break;
            }
        }
    }
}

/// One line without its end; an error at the end of the stream, and for a line that is too long or not UTF-8.
fn read_line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut bytes = Vec::new();
    let count = reader.take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    if count == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    if bytes.pop() != Some(b'\n') && count as u64 == MAX_LINE {
        return Err(invalid("a line of more than 4 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| invalid("a line that is not UTF-8"))
}

impl Drop for Process {
    fn drop(&mut self) {
        #[cfg(unix)]
        {
            let group = format!("-{}", self.child.id());
            let mut kill = std::process::Command::new("kill");
            kill.args(["-KILL", "--", &group]).stdout(Stdio::null()).stderr(Stdio::null());
            // Without the program `kill` the process itself is still ended below.
            let _ = kill.status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
