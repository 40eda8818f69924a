// Package limits has the bounds that the protocol sets on what is taken from the network. Sizes are in bytes.
package limits

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	Protocol              = 1
	MaxTensors            = 65_536
	MaxTensorNameBytes    = 256
	MaxAxes               = 32
	MaxTensorsPerPart     = 1_000
	MaxPartBytes          = 1 << 20
	MaxModelBytes         = 64 << 30
	DefaultChunkBytes     = 1 << 20
	MaxChunkBytes         = 4<<20 - 64<<10
	WindowBytes           = 4 << 20
	MaxMetadataBytes      = 16 << 10
	MaxReasonBytes        = 1_024
	MaxMetrics            = 64
	MaxMetricNameBytes    = 64
	MaxClassNames         = 1_000
	MaxClassNameBytes     = 128
	MaxPreprocessingBytes = 1_024
	MaxPlanSettings       = 64
	MaxPlanSettingBytes   = 256
	MaxIDBytes            = 64
)

var clientName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// IsClientName says whether name may name a client.
func IsClientName(name string) bool { return clientName.MatchString(name) }

// IsTensorName says whether name may name a tensor; safetensors keeps one name for itself.
func IsTensorName(name string) bool {
	return IsText(name, 1, MaxTensorNameBytes) && name != "__metadata__"
}

// IsText says whether text is UTF-8 of so many bytes without control characters, which would break a line of a canonical
// description.
func IsText(text string, least, most int) bool {
	return len(text) >= least && len(text) <= most && utf8.ValidString(text) && !strings.ContainsFunc(text, isControl)
}

func isControl(r rune) bool { return r < 0x20 || r >= 0x7f && r <= 0x9f }

// ClipReason gives text as one line of at most MaxReasonBytes, without cutting a character in two.
func ClipReason(text string) string {
	line := strings.TrimSpace(strings.Map(func(r rune) rune {
		if isControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?")))
	if len(line) <= MaxReasonBytes {
		return line
	}
	end := MaxReasonBytes
	for !utf8.RuneStart(line[end]) {
		end--
	}
	return line[:end]
}
