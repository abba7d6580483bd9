//! The form of a recording: scenarios of steps, as JSON.
//!
//! Deliberately absent: what a request means. Requests and answers are bytes here.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::Value;

/// Requests with the answers that a real server gave to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, unique in its file.
    pub name: String,
    /// How the server kept keys: 0 is API v1, 2 is API v2.
    pub api_version: i32,
    /// In the order they happened.
    pub steps: Vec<Step>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A request was answered.
    Call(Asked, Vec<u8>),
    /// A request was sent and left waiting, under this name.
    Spawn(Asked, String),
    /// The request of this name had not been answered yet.
    StillWaiting(String),
    /// The answer of the request of this name, which had come by now.
    Join(String, Vec<u8>),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The method of `tikvpb.Tikv`.
    pub rpc: String,
    /// The key whose region it goes to, as users write it.
    pub key: Vec<u8>,
    /// The message.
    pub message: Vec<u8>,
}

impl Scenario {
    /// Reads a line of a recording.
    ///
    /// # Errors
    ///
    /// The line is none.
    pub fn parse(line: &str) -> Result<Scenario, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let name = text(&value, "name")?.to_owned();
        let steps = value["steps"]
            .as_array()
            .ok_or_else(|| format!("{name}: no steps"))?;
        let steps = steps
            .iter()
            .map(|step| Step::parse(step).map_err(|error| format!("{name}: {error}")))
            .collect::<Result<_, _>>()?;
        let api_version = value["api_version"].as_i64().unwrap_or_default();
        Ok(Scenario {
            name,
            api_version: api_version as i32,
            steps,
        })
    }
}

impl Step {
    fn parse(step: &Value) -> Result<Step, String> {
        if let Some(name) = step["still_waiting"].as_str() {
            return Ok(Step::StillWaiting(name.to_owned()));
        }
        if let Some(name) = step["join"].as_str() {
            return Ok(Step::Join(name.to_owned(), bytes(step, "resp")?));
        }
        let asked = Asked {
            rpc: text(step, "rpc")?.to_owned(),
            key: bytes(step, "key")?,
            message: bytes(step, "req")?,
        };
        Ok(match step["spawn"].as_str() {
            Some(name) => Step::Spawn(asked, name.to_owned()),
            None => Step::Call(asked, bytes(step, "resp")?),
        })
    }
}

/// Reads a file of scenarios, compressed if its name ends in `.gz`.
///
/// # Errors
///
/// The file can't be read, or is no recording.
pub fn read(path: &Path) -> Result<Vec<Scenario>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(failed)?;
    let reader: Box<dyn Read> = if path.extension().is_some_and(|ending| ending == "gz") {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut scenarios = Vec::new();
    for line in BufReader::new(reader).lines() {
        let line = line.map_err(failed)?;
        let scenario = Scenario::parse(&line);
        scenarios.push(scenario.map_err(|error| format!("{}: {error}", path.display()))?);
    }
    Ok(scenarios)
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, String> {
    value[field]
        .as_str()
        .ok_or_else(|| format!("{field} is no text"))
}

fn bytes(value: &Value, field: &str) -> Result<Vec<u8>, String> {
    let text = text(value, field)?;
    let digits = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<Vec<u8>>>()
        .filter(|digits| digits.len() % 2 == 0)
        .ok_or_else(|| format!("{field} is not hexadecimal"))?;
    Ok(digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_scenario() {
        let line = r#"{"name":"n","api_version":2,"steps":[
            {"rpc":"RawGet","key":"00fF","req":"","resp":"2801"},
            {"rpc":"RawPut","key":"","req":"","spawn":"w"},
            {"still_waiting":"w"},
            {"join":"w","resp":""}]}"#;
        let asked = |rpc: &str, key: &[u8]| Asked {
            rpc: rpc.to_owned(),
            key: key.to_vec(),
            message: Vec::new(),
        };
        let expected = Scenario {
            name: "n".to_owned(),
            api_version: 2,
            steps: vec![
                Step::Call(asked("RawGet", &[0, 0xFF]), vec![0x28, 1]),
                Step::Spawn(asked("RawPut", &[]), "w".to_owned()),
                Step::StillWaiting("w".to_owned()),
                Step::Join("w".to_owned(), Vec::new()),
            ],
        };
        assert_eq!(Scenario::parse(line), Ok(expected));
    }

    #[test]
    fn what_is_no_scenario_is_refused() {
        for wrong in [
            "",
            "{}",
            r#"{"name":"n"}"#,
            r#"{"name":"n","steps":[{"rpc":"RawGet","key":"0","req":"","resp":""}]}"#,
            r#"{"name":"n","steps":[{"rpc":"RawGet","key":"0g","req":"","resp":""}]}"#,
            r#"{"name":"n","steps":[{"rpc":"RawGet","key":"","req":""}]}"#,
        ] {
            assert!(Scenario::parse(wrong).is_err(), "{wrong}");
        }
    }
}
