//! A list that a change interrupts is asked for again.

use crate::error::TransportError;

/// How often a list is asked for before the changes of others count as an error.
const TRIES: usize = 5;

/// Asks until what comes is whole: the kernel tells where a table changed while it was listed (`NLM_F_DUMP_INTR`), since
/// then objects may be missing from the list, or be in it twice. What an interrupted try brought is dropped.
///
/// # Errors
/// As `ask`; [`TransportError::Interrupted`] where each of five tries was interrupted.
pub fn whole<T>(mut ask: impl FnMut() -> Result<T, TransportError>) -> Result<T, TransportError> {
    for _ in 1..TRIES {
        match ask() {
            Err(TransportError::Interrupted) => {}
            answer => return answer,
        }
    }
    ask()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::KernelError;

    #[test]
    fn f25_an_interrupted_list_is_asked_for_again() {
        let asked = |interruptions: usize, end: fn() -> Result<usize, TransportError>| {
            let mut times = 0;
            let answer = whole(|| {
                times += 1;
                if times > interruptions {
                    end()
                } else {
                    Err(TransportError::Interrupted)
                }
            });
            (answer, times)
        };
        for interruptions in 0..TRIES {
            assert!(matches!(asked(interruptions, || Ok(7)), (Ok(7), times) if times == interruptions + 1));
        }
        assert!(matches!(
            asked(TRIES, || Ok(7)),
            (Err(TransportError::Interrupted), TRIES)
        ));
        let refused = || {
            Err(TransportError::Refused(KernelError {
                errno: libc::EPERM,
                sentence: None,
            }))
        };
        assert!(matches!(asked(1, refused), (Err(TransportError::Refused(_)), 2)));
    }
}
