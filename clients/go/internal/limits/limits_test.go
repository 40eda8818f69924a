package limits_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"fedstream/client/internal/limits"
)

func TestNamesKeepTheirBounds(t *testing.T) {
	for name, isOne := range map[string]bool{"a": true, "A.b_c-1": true, "-a": false, "": false, strings.Repeat("a", 65): false, "ä": false, "a\n": false} {
		if limits.IsClientName(name) != isOne {
			t.Errorf("%q", name)
		}
	}
}

func TestReasonIsOneLineWithoutHalfACharacter(t *testing.T) {
	clipped := limits.ClipReason("a\n" + strings.Repeat("ä", 600))
	if len(clipped) > limits.MaxReasonBytes || !utf8.ValidString(clipped) || !strings.HasPrefix(clipped, "a ä") {
		t.Errorf("%d bytes: %q", len(clipped), clipped)
	}
}
