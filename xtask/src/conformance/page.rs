//! The table of docs/conformance.md: written between two marks, from verdicts.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::proxy::Proxy;
use super::suite::LeftOut;
use super::verdict::{Outcome, Verdicts, outcome};

const BEGIN: &str = "<!-- written by cargo xtask conformance --write-docs: begin -->\n";
const END: &str = "<!-- end -->";

/// Puts the tables of a run into a page.
///
/// # Errors
/// The page has not both marks.
pub(crate) fn written(page: &str, verdicts: &Verdicts, left_out: &[LeftOut]) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the page has no mark of a beginning")?;
    let (_, after) = rest.split_once(END).context("the page has no mark of an end")?;
    let mut text = String::new();
    counts(&mut text, verdicts)?;
    tests(&mut text, verdicts)?;
    reasons(&mut text, verdicts)?;
    not_asked(&mut text, left_out)?;
    Ok(format!("{before}{BEGIN}{text}{END}{after}"))
}

fn counts(text: &mut String, verdicts: &Verdicts) -> Result<()> {
    writeln!(
        text,
        "\n| proxy | passed | failed | skipped by themselves |\n|---|---|---|---|"
    )?;
    for (proxy, verdicts) in verdicts {
        let count = |is: fn(&Outcome) -> bool| verdicts.iter().filter(|verdict| is(&verdict.outcome)).count();
        writeln!(
            text,
            "| {} | {} | {} | {} |",
            proxy.name(),
            count(Outcome::passed),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        )?;
    }
    Ok(())
}

fn tests(text: &mut String, verdicts: &Verdicts) -> Result<()> {
    let proxies: Vec<Proxy> = verdicts.keys().copied().collect();
    let names: Vec<_> = proxies.iter().map(|proxy| proxy.name()).collect();
    writeln!(text, "\n## Tests\n\n| test | {} |", names.join(" | "))?;
    writeln!(text, "|---|{}", "---|".repeat(proxies.len()))?;
    for test in names_of(verdicts) {
        let cells = proxies.iter().map(|proxy| match outcome(verdicts, *proxy, test) {
            Some(Outcome::Passed | Outcome::PassedAlone(_)) => "passed",
            Some(Outcome::Failed(_)) => "**failed**",
            Some(Outcome::Skipped(_)) => "skipped",
            None => "not run",
        });
        writeln!(text, "| {} | {} |", shown(test), cells.collect::<Vec<_>>().join(" | "))?;
    }
    Ok(())
}

/// Why, for what did not pass.
fn reasons(text: &mut String, verdicts: &Verdicts) -> Result<()> {
    writeln!(text, "\n## What did not pass, and why\n")?;
    let mut none = true;
    for test in names_of(verdicts) {
        let mut said: Vec<(String, Vec<&str>)> = Vec::new();
        for proxy in verdicts.keys() {
            let why = match outcome(verdicts, *proxy, test) {
                Some(Outcome::Failed(why)) => format!("failed: {}", first_line(why)),
                Some(Outcome::Skipped(why)) => format!("skipped: {}", first_line(why)),
                Some(Outcome::PassedAlone(why)) => {
                    format!("failed beside other tests, passed alone: {}", first_line(why))
                }
                Some(Outcome::Passed) | None => continue,
            };
            match said.iter_mut().find(|(text, _)| *text == why) {
                Some((_, proxies)) => proxies.push(proxy.name()),
                None => said.push((why, vec![proxy.name()])),
            }
        }
        for (why, proxies) in said {
            none = false;
            let who = if proxies.len() == verdicts.len() {
                "all".to_owned()
            } else {
                proxies.join(", ")
            };
            writeln!(text, "- {} ({who}): {why}", shown(test))?;
        }
    }
    if none {
        writeln!(text, "Nothing.")?;
    }
    Ok(())
}

fn not_asked(text: &mut String, left_out: &[LeftOut]) -> Result<()> {
    writeln!(text, "\n## Not asked for\n")?;
    let mut reasons: Vec<&str> = Vec::new();
    for LeftOut { why, .. } in left_out {
        if !reasons.contains(why) {
            reasons.push(why);
        }
    }
    for reason in reasons {
        let tests: Vec<_> = left_out.iter().filter(|out| out.why == reason).collect();
        writeln!(text, "{} ({}):\n", capital(reason), tests.len())?;
        for LeftOut { test, .. } in tests {
            writeln!(text, "- {}", shown(test))?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn names_of(verdicts: &Verdicts) -> Vec<&str> {
    let mut names: Vec<_> = verdicts
        .values()
        .flatten()
        .map(|verdict| verdict.test.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A name without its group, in letters that mean nothing to a page.
fn shown(test: &str) -> String {
    test.strip_prefix("[sig-network] ").unwrap_or(test).replace('|', "\\|")
}

/// What a test said first, without what changes from run to run at its end.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(200).collect();
    short.replace('|', "\\|")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::conformance::verdict::Verdict;

    #[test]
    fn a_page_keeps_its_words_and_gets_its_tables() {
        let verdict = |test: &str, outcome: Outcome| Verdict {
            test: format!("[sig-network] {test}"),
            outcome,
            seconds: 1,
            log: PathBuf::new(),
        };
        let verdicts = Verdicts::from([
            (
                Proxy::KubeIpvs,
                vec![
                    verdict("a", Outcome::Passed),
                    verdict("b", Outcome::Skipped("one node".to_owned())),
                ],
            ),
            (
                Proxy::KubeProxyIpvs,
                vec![
                    verdict("a", Outcome::Failed("late\nby a second".to_owned())),
                    verdict("b", Outcome::Skipped("one node".to_owned())),
                ],
            ),
        ]);
        let left_out = [LeftOut {
            test: "[sig-network] c".to_owned(),
            why: "needs the internet",
        }];
        let page = format!("# Words\n\n{BEGIN}old\n{END}\n\nmore words\n");
        let written = written(&page, &verdicts, &left_out).unwrap();
        let expected = format!(
            "# Words\n\n{BEGIN}
| proxy | passed | failed | skipped by themselves |
|---|---|---|---|
| kube-ipvs | 1 | 0 | 1 |
| kube-proxy-ipvs | 0 | 1 | 1 |

## Tests

| test | kube-ipvs | kube-proxy-ipvs |
|---|---|---|
| a | passed | **failed** |
| b | skipped | skipped |

## What did not pass, and why

- a (kube-proxy-ipvs): failed: late
- b (all): skipped: one node

## Not asked for

Needs the internet (1):

- c

{END}\n\nmore words\n"
        );
        assert_eq!(written, expected);
        assert!(super::written("# no marks", &verdicts, &left_out).is_err());
    }
}
