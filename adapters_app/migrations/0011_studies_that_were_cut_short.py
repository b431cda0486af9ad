"""A study is stored fit by fit; those of earlier releases were stored when they were finished."""

from django.db import migrations, models

HELP = "All of its fits are stored; else the same command goes on."


class Migration(migrations.Migration):
    dependencies = [("adapters_app", "0010_rows_a_calibrator_was_fitted_on")]

    operations = [
        migrations.AddField(
            model_name="study",
            name="finished",
            field=models.BooleanField(default=True, help_text=HELP),
        ),
        migrations.AlterField(
            model_name="study",
            name="finished",
            field=models.BooleanField(default=False, help_text=HELP),
        ),
        migrations.AlterField(
            model_name="study",
            name="data_digest",
            field=models.CharField(
                help_text="SHA-256 over pairs, labels, groups, categories and weights, in order.",
                max_length=64,
            ),
        ),
    ]
