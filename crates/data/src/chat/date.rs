//! `strftime_now`, which templates ask for today's date.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The function: the date and time, in UTC, at which this process first asked, so that all of its prompts agree.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    static NOW: OnceLock<u64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(format, *NOW.get_or_init(now)).map_err(|code| {
        Error::new(ErrorKind::InvalidOperation, format!("`strftime_now` does not know `%{code}`"))
    })
}

/// A time in seconds since 1970 in Python's notation, of which the codes of dates and times are known; else the code that
/// is not.
fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 4) % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next().map_or_else(String::new, String::from);
        if code == "-" {
            code.extend(chars.next());
        }
        out += &match code.as_str() {
            "Y" => year.to_string(),
            "y" => format!("{:02}", year % 100),
            "m" => format!("{month:02}"),
            "-m" => month.to_string(),
            "d" => format!("{day:02}"),
            "-d" => day.to_string(),
            "e" => format!("{day:2}"),
            "B" => month_name.to_owned(),
            "b" => month_name[..3].to_owned(),
            "A" => day_name.to_owned(),
            "a" => day_name[..3].to_owned(),
            "H" => format!("{hour:02}"),
            "M" => format!("{minute:02}"),
            "S" => format!("{second:02}"),
            "F" => format!("{year}-{month:02}-{day:02}"),
            "%" => "%".to_owned(),
            _ => return Err(code),
        };
    }
    Ok(out)
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// What Python's `datetime.fromtimestamp(…, UTC).strftime` gives.
    #[test]
    fn dates_are_written_as_python_does() {
        for (seconds, want) in [
            (0, "Thursday, 01 January 1970 00:00:00"),
            (951_782_400, "Tuesday, 29 February 2000 00:00:00"),
            (1_735_689_599, "Tuesday, 31 December 2024 23:59:59"),
        ] {
            assert_eq!(strftime("%A, %d %B %Y %H:%M:%S", seconds).unwrap(), want);
        }
        assert_eq!(strftime("%d %b %Y|%-d|%y|%F|100%%", 0).unwrap(), "01 Jan 1970|1|70|1970-01-01|100%");
        assert_eq!(strftime("%Q", 0).unwrap_err(), "Q");
    }
}
