package token_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"fedstream/client/internal/token"
	"fedstream/client/internal/vectors"
)

func TestTokensReadAsTheVectorsSay(t *testing.T) {
	for _, vector := range vectors.Read(t, "tokens.txt") {
		t.Run(vector.Text(t, "case"), func(t *testing.T) {
			text := vector.Text(t, "token")
			read, err := token.Decode(text[:9] + "\n " + text[9:] + "\n") // as a mail program may break it
			if vector.Has("malformed") {
				if err == nil {
					t.Error("taken for a token")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for key, value := range map[string]string{
				"token_id": hex.EncodeToString(read.ID), "token_secret": hex.EncodeToString(read.Secret),
				"fingerprint": read.Fingerprint, "name": read.Name, "server": read.Server, "enrolment": read.Enrolment,
			} {
				if value != vector.Text(t, key) {
					t.Errorf("%s is %q", key, value)
				}
			}
		})
	}
}

func TestTokenIsFoundInTheWholeOfWhatWasPrinted(t *testing.T) {
	vector := vectors.Read(t, "tokens.txt")[0]
	text, other := vector.Text(t, "token"), vector.Text(t, "token")+"x"
	printed := "Send this to site-a:\n\n    fedclient join --token " + text + "\n\nor its --token " + text + " alone.\n"
	if read, err := token.Decode(printed); err != nil || read.Name != vector.Text(t, "name") {
		t.Errorf("%+v, %v", read, err)
	}
	if _, err := token.Decode("one " + text + "\ntwo " + other); err == nil || !strings.Contains(err.Error(), "2 join tokens") {
		t.Error(err)
	}
}

func TestOtherTextIsNoTokenAndIsNotRepeated(t *testing.T) {
	for _, text := range []string{"", "fsj1_", "fsj1_secret!", "fsj1_" + strings.Repeat("A", 4_000), "secret"} {
		if _, err := token.Decode(text); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}
