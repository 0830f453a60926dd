//! Flags that stand for a field of a configuration: a table of rows, of which the command line is made, and what was
//! given of them.
//!
//! Every flag of a [`Table`] has one row: name, field, kind, help. Its default is the field's. So a field has one
//! default, one check and one meaning, wherever it is set.

use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::flag_value::Kind;
use super::tree;

/// A flag and the field that it sets.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// Names of the fields on the way to it, separated by dots.
    pub(super) field: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// Flags that stand together in the help.
pub(crate) trait Table {
    const HEADING: &'static str;
    const FLAGS: &'static [Flag];

    /// The configuration whose fields they set, with defaults.
    fn defaults() -> Value;
}

/// What was given of the flags of a table.
#[derive(Debug)]
pub(crate) struct Flags<T> {
    given: Vec<(&'static Flag, Value)>,
    table: PhantomData<T>,
}

impl<T> Default for Flags<T> {
    fn default() -> Self {
        Self {
            given: Vec::new(),
            table: PhantomData,
        }
    }
}

impl<T> Flags<T> {
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.given.iter().map(|(flag, _)| flag.name)
    }

    /// The configuration with what was given.
    pub(super) fn over<C: Serialize + DeserializeOwned>(&self, configuration: &C) -> C {
        let mut tree = tree::of(configuration);
        for (flag, value) in &self.given {
            if !value.is_null() {
                tree::set(&mut tree, flag.field, value.clone());
            }
        }
        tree::remove_nulls(&mut tree);
        serde_json::from_value(tree).expect("a row's kind is that of its field")
    }
}

fn argument(flag: &'static Flag, heading: &'static str, defaults: &Value) -> Arg {
    let kind = flag.kind;
    let default = kind.write(tree::get(defaults, flag.field));
    let argument = Arg::new(flag.name)
        .long(flag.name)
        .help(flag.help)
        .help_heading(heading)
        .value_name(kind.value_name())
        .action(if kind.repeats() {
            ArgAction::Append
        } else {
            ArgAction::Set
        })
        .value_parser(move |text: &str| kind.parse(text))
        .hide_default_value(default.is_empty())
        .default_value(default);
    let argument = match kind {
        Kind::Bool => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => argument.allow_hyphen_values(true),
    };
    if flag.name == "v" {
        argument.short('v')
    } else {
        argument
    }
}

impl<T: Table> clap::Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        let defaults = T::defaults();
        command.args(T::FLAGS.iter().map(|flag| argument(flag, T::HEADING, &defaults)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = T::FLAGS
            .iter()
            .filter(|flag| matches.value_source(flag.name) == Some(ValueSource::CommandLine))
            .map(|flag| {
                let values = matches.get_many::<Value>(flag.name).unwrap_or_default();
                (flag, Kind::join(values.cloned()))
            });
        Ok(Self {
            given: given.collect(),
            table: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
pub(super) fn parsed<T: Table>(flags: &[&str]) -> Result<Flags<T>, clap::Error> {
    use clap::{Args, FromArgMatches};

    let command = Flags::<T>::augment_args(Command::new("test")).args_override_self(true);
    Flags::from_arg_matches(&command.try_get_matches_from(["test"].iter().chain(flags))?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Two;

    impl Table for Two {
        const HEADING: &'static str = "Two";
        const FLAGS: &'static [Flag] = &[
            Flag {
                name: "deep",
                field: "a.b.c",
                kind: Kind::Bool,
                help: "",
            },
            Flag {
                name: "list",
                field: "list",
                kind: Kind::List,
                help: "",
            },
        ];

        fn defaults() -> Value {
            json!({"list": ["x"]})
        }
    }

    #[test]
    fn what_is_given_is_set_and_the_rest_stays() {
        let over = |flags: &[&str]| parsed::<Two>(flags).map(|flags| flags.over(&Two::defaults()));
        assert_eq!(over(&[]).unwrap(), json!({"list": ["x"]}));
        assert_eq!(
            over(&["--deep", "--list=y", "--list", "-z"]).unwrap(),
            json!({"list": ["y", "-z"], "a": {"b": {"c": true}}})
        );
        assert_eq!(
            over(&["--deep=true", "--deep=F"]).unwrap(),
            json!({"list": ["x"], "a": {"b": {"c": false}}})
        );
        assert!(over(&["--deep", "false"]).is_err());
    }
}
